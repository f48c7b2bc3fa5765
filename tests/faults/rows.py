"""Which test proves which row of the tables of faults (C), bad inputs (D) and threats (E), or why none does.

A proof is `file::test` below tests/, or `file::test[beginning of the parameters' id]`. Where a row's wording differs from
the contract or the interface, those win; `note` says so. tests/faults/test_rows.py checks that every name is there.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table: what proves it, or why nothing does; `note` says where it is meant otherwise than it is written."""

    proofs: tuple[str, ...] = ()
    why_not: str = ""
    note: str = ""


def _row(*proofs: str, note: str = "") -> Row:
    return Row(proofs, note=note)


def _not(why: str) -> Row:
    return Row(why_not=why)


_COUNTS = {"C": 48, "D": 42, "E": 19}
NAMES = [f"{table}{number}" for table, count in _COUNTS.items() for number in range(1, count + 1)]

_ADDING = "contract/test_adding.py::test_"
_BAD = "faults/test_bad_inputs.py::test_"
_BATCH = "integration/test_batch.py::test_"
_CLI = "integration/test_cli.py::test_"
_CLOCK = "faults/test_machine_and_clock.py::test_"
_CONFIGURATION = "contract/test_configuration.py::test_"
_EDITED = "faults/test_edited_files.py::test_"
_EVENTS = "contract/test_events.py::test_"
_EXPORTING = "contract/test_exporting.py::test_"
_FAILPOINTS = "faults/test_failpoints.py::test_"
_FAULTS = "faults/test_faults_of_workers.py::test_"
_INTERRUPTS = "integration/test_interrupts.py::test_"
_JOURNAL = "faults/test_journal.py::test_"
_KILLED = "faults/test_killed_and_resumed.py::test_"
_LIVE = "faults/test_live_control.py::test_"
_MANAGERS = "faults/test_managers.py::test_"
_ORDERS = "unit/test_orders.py::test_"
_PROCESSES = "unit/test_process_control.py::test_"
_PROCESSING = "unit/test_processing.py::test_"
_PROGRESS = "unit/test_progress.py::test_"
_REPORTING = "contract/test_reporting.py::test_"
_RESULTS = "unit/test_results.py::test_"
_RETRYING = "contract/test_retrying.py::test_"
_SECURITY = "faults/test_security.py::test_"
_SERVICE = "unit/test_service.py::test_"
_SETTINGS = "unit/test_settings.py::test_"
_SUPERVISOR = "integration/test_supervisor.py::test_"
_VILLAINS = "integration/test_villains.py::test_"
_WORKERS = "integration/test_workers.py::test_"

ROWS: dict[str, Row] = {
    # ── C: faults ────────────────────────────────────────────────────────────────────────────────────────────────────
    "C1": _row(_SUPERVISOR + "a_worker_that_is_killed_while_idle_is_replaced_and_nobody_is_charged"),
    "C2": _row(
        _FAILPOINTS + "a_worker_killed_there_is_replaced[worker.after_exchange",
        _FAILPOINTS + "a_worker_killed_at_every_hit_of[worker.after_exchange",
        note="a lease that was not begun is given back and costs no attempt (contract, README)",
    ),
    "C3": _row(
        _VILLAINS + "a_po_that_kills_its_worker",
        _VILLAINS + "a_segmentation_fault_is_named_and_where_it_was",
        _INTERRUPTS + "a_worker_killed_from_outside_costs_one_attempt_of_its_po",
        note="the text names the signal; it speaks of memory only if the kernel's count of such kills has grown",
    ),
    "C4": _row(
        _VILLAINS + "leaving_by_an_exception_is_a_failed_attempt_and_the_worker_lives",
        _PROCESSING + "exceptions_that_end_programs_are_failed_attempts",
    ),
    "C5": _row(_VILLAINS + "a_po_that_ends_its_worker_with_exit_code_0"),
    "C6": _row(_VILLAINS + "a_po_that_hangs_in_its_own_way[hang", _VILLAINS + "a_po_that_hangs_in_its_own_way[hold_the_gil"),
    "C7": _row(
        _VILLAINS + "a_po_that_does_not_hear_term_is_killed_after_the_grace",
        _VILLAINS + "a_po_that_hangs_in_its_own_way[stop_itself",
    ),
    "C8": _row(
        _VILLAINS + "a_child_of_a_hung_po_dies_with_it",
        _VILLAINS + "a_fork_bomb_is_defused",
        _VILLAINS + "a_daemon_of_a_hung_po_dies_with_it",
        _VILLAINS + "a_daemon_of_a_dead_worker_is_found",
        _VILLAINS + "no_process_named_by_a_villain_is_in_the_process_table",
        _PROCESSES + "those_who_keep_forking_are_all_caught",
    ),
    "C9": _row(_FAULTS + "a_death_is_seen_though_a_child_holds_what_would_tell_of_it"),
    "C10": _row(
        _VILLAINS + "a_forked_child_that_comes_back_into_our_loop_reports_nothing",
        _SERVICE + "a_forked_copy_has_a_stream_of_its_own",
    ),
    "C11": _row(
        _FAULTS + "a_worker_killed_in_the_middle_of_its_report_has_done_its_work",
        _SERVICE + "a_client_killed_in_the_middle_of_a_message_harms_nobody",
        note="not lost and retried: the report stands in the worker's files as well, so what was finished counts (README)",
    ),
    "C12": _row(
        _FAILPOINTS + "a_worker_killed_there_is_replaced[worker.report_kept",
        _FAILPOINTS + "a_manager_killed_at_every_hit_of[service.before_answer",
        _SUPERVISOR + "what_a_worker_had_finished_and_not_told_is_not_run_again",
    ),
    "C13": _row(
        _FAULTS + "an_end_in_the_moment_of_the_time_limit_is_done_or_retried",
        _FAULTS + "200_ends_in_the_moment_of_the_time_limit_are_done_or_retried",
        _VILLAINS + "a_po_that_ends_in_the_time_of_grace_costs_the_next_ones_nothing",
    ),
    "C14": _row(
        _FAULTS + "results_that_cannot_be_told_cost_one_attempt_each_and_nobody_dies_of_them",
        _PROCESSING + "values_without_a_plain_form_fail_the_attempt_and_name_the_place",
        _PROCESSING + "hostile_containers_end_as_a_failed_attempt_or_as_plain_data",
    ),
    "C15": _row(
        _PROCESSING + "any_exception_becomes_plain_data", _PROCESSING + "long_messages_and_tracebacks_are_cut"
    ),
    "C16": _row(
        _FAULTS + "results_that_cannot_be_told_cost_one_attempt_each_and_nobody_dies_of_them",
        _PROCESSING + "a_result_too_large_is_refused",
    ),
    "C17": _row(
        _VILLAINS + "a_memory_error_is_a_failed_attempt_and_the_worker_lives",
        _VILLAINS + "a_kill_by_the_kernel_for_want_of_memory_is_told_as_such",
        _FAULTS + "a_po_that_kills_every_worker_ends_after_its_retries",
        note="the kernel's count is a fake: systemd-run and its memory limit are not to be had in a container",
    ),
    "C18": _row(
        _VILLAINS + "the_next_po_finds_its_worker_as_it_was",
        _VILLAINS + "a_signal_mask_that_a_po_leaves_does_not_deafen_the_worker",
        _FAULTS + "the_next_po_can_work_and_be_heard",
        _FAULTS + "a_worker_that_cannot_be_asked_for_its_stack_is_killed_in_time_all_the_same",
        _FAULTS + "what_a_po_leaks_ends_with_its_worker",
        _WORKERS + "a_worker_is_replaced_after_so_many_pos",
    ),
    "C19": _row(
        _WORKERS + "workers_whose_session_cannot_be_opened_stop_the_run",
        _WORKERS + "workers_that_die_while_they_start_stop_the_run",
        _WORKERS + "a_module_that_only_workers_cannot_import_stops_the_run",
        _CLI + "four_when_workers_cannot_boot",
        _CLI + "a_bad_processor_is_one_message_and_no_run",
        note="exit code 4 (interface); a module that nobody can import is found before any worker starts, with 2",
    ),
    "C20": _row(
        _FAULTS + "a_refused_process_is_asked_for_again_and_leaks_nothing",
        _FAULTS + "a_fork_server_that_ends_in_the_middle_of_a_start_is_a_start_that_failed",
        _FAULTS + "no_process_for_too_long_ends_the_run",
        note="exit code 4 (interface)",
    ),
    "C21": _row(
        _MANAGERS + "a_manager_killed_several_times_is_replaced_and_results_count_once",
        _MANAGERS + "workers_in_the_middle_of_a_po_go_on_when_the_manager_is_killed",
        _FAILPOINTS + "a_manager_killed_there_is_replaced",
        _FAILPOINTS + "a_manager_killed_at_every_hit_of",
        _INTERRUPTS + "without_a_journal_a_lost_manager_ends_the_run_with_its_accounts_in_balance",
        note="the manager is replaced from the journal, and the run goes on (issue)",
    ),
    "C22": _row(_MANAGERS + "a_manager_that_is_stopped_for_a_while_loses_nothing_and_times_nothing_out"),
    "C23": _row(
        _MANAGERS + "a_manager_that_is_stopped_for_ever_is_replaced",
        _SERVICE + "a_call_to_a_stopped_manager_ends_in_time_and_the_next_one_works",
        _SERVICE + "a_new_connection_to_a_stopped_manager_ends_in_time",
        note="replaced after two calls without an answer, and the run goes on (issue)",
    ),
    "C24": _row(
        _FAULTS + "a_manager_without_descriptors_serves_those_it_knows_and_lets_others_in_later",
        _FAULTS + "the_last_descriptor_is_enough_for_a_connection",
        _FAULTS + "a_manager_without_threads_is_told_of_at_once_and_the_run_goes_on_with_those_it_knows",
        _FAULTS + "no_more_connections_than_the_limit_are_held",
        _SERVICE + "silent_connections_hold_up_nobody",
        _SERVICE + "a_silent_connection_is_dropped",
    ),
    "C25": _row(
        _SERVICE + "whatever_a_method_raises_comes_back_as_an_error_of_ours",
        _SERVICE + "an_argument_that_raises_while_it_is_opened_is_an_error_of_this_call",
    ),
    "C26": _row(
        _FAULTS + "a_handler_that_blocks_holds_up_nobody",
        _FAULTS + "a_handler_may_add_and_remove_itself",
        _FAULTS + "a_handler_that_always_raises_is_logged_and_counts_nowhere",
        _EVENTS + "no_handler_is_called_under_the_lock",
        _EVENTS + "a_handler_may_use_the_queue_itself",
    ),
    "C27": _row(
        _JOURNAL + "a_full_database",
        _JOURNAL + "a_full_disk",
        _JOURNAL + "a_limit_on_the_size_of_files",
        _JOURNAL + "what_cannot_be_written_has_not_happened",
        _CLOCK + "a_run_stands_still_while_its_disk_is_full_and_goes_on_afterwards",
    ),
    "C28": _row(
        _JOURNAL + "a_file_that_somebody_else_has_locked_is_not_opened",
        _JOURNAL + "a_file_that_was_deleted_or_replaced_is_noticed",
        _FAULTS + "a_run_whose_journal_is_deleted_says_so_and_ends",
    ),
    "C29": _row(
        _JOURNAL + "a_kill_at_any_commit_loses_nothing_that_was_told",
        _JOURNAL + "a_log_that_was_cut_off_is_an_earlier_state_or_an_error",
        _JOURNAL + "no_other_file_is_taken_for_a_journal",
    ),
    "C30": _row(
        _EDITED + "what_was_done_is_skipped_and_what_changed_in_the_file_is_run",
        _EDITED + "another_processor_is_refused",
        _EDITED + "a_run_record_of_another_version_is_refused",
    ),
    "C31": _row(
        _SUPERVISOR + "nothing_survives_a_supervisor_that_is_killed",
        _INTERRUPTS + "nothing_of_a_killed_run_goes_on",
        _KILLED + "a_supervisor_killed_alone_takes_everything_along_and_the_run_goes_on",
        _FAILPOINTS + "a_run_killed_there_is_resumed",
        _FAILPOINTS + "a_supervisor_killed_at_every_hit_of",
    ),
    "C32": _row(_INTERRUPTS + "the_first_ctrl_c_lets_running_pos_end_and_starts_no_other"),
    "C33": _row(
        _INTERRUPTS + "the_second_ctrl_c_gives_running_pos_back_without_charging_them",
        _INTERRUPTS + "the_third_ctrl_c_kills_at_once_what_does_not_listen",
        _INTERRUPTS + "three_at_once_are_three",
    ),
    "C34": _row(_INTERRUPTS + "ctrl_c_ends_a_run_cleanly_at_any_moment"),
    "C35": _row(
        _INTERRUPTS + "term_is_as_graceful_and_has_its_own_code",
        _INTERRUPTS + "hup_drains_however_often_it_comes",
        _INTERRUPTS + "quit_writes_down_every_stack_and_goes_on",
        _SERVICE + "signals_of_the_terminal_do_not_end_the_manager",
        note="QUIT dumps all stacks and goes on (interface)",
    ),
    "C36": _row(
        _SUPERVISOR + "time_in_which_the_supervisor_did_not_run_counts_against_no_po",
        _KILLED + "a_supervisor_that_is_stopped_longer_than_the_time_limit_times_nothing_out",
    ),
    "C37": _row(
        _RETRYING + "a_jump_of_the_wall_clock_neither_hastens_nor_delays_a_retry",
        _JOURNAL + "in_one_boot_a_retry_is_due_when_it_was_whatever_the_wall_clock_says",
        _JOURNAL + "after_another_boot_a_retry_waits_the_rest_of_its_delay_and_never_longer",
        "contract/test_retention.py::test_a_jump_of_the_wall_clock_forgets_nothing",
    ),
    "C38": _row(
        _FAULTS + "a_run_that_nobody_listens_to_ends_by_its_own_code",
        _FAULTS + "a_log_that_is_removed_meanwhile_ends_no_run",
        _PROGRESS + "a_broken_pipe_never_breaks_the_run",
        _PROGRESS + "a_full_disk_under_stderr_leaves_the_exit_code_alone",
        "integration/test_screen.py::test_a_reader_that_goes_away_harms_nothing",
    ),
    "C39": _row(
        _FAULTS + "a_report_that_cannot_be_written_at_the_end_is_told_and_the_runs_own_is_there",
        _FAULTS + "an_old_report_is_replaced_whole",
        _CLOCK + "the_report_is_whole_or_not_there",
        "unit/test_report_files.py::test_what_cannot_be_written_leaves_the_old_file_and_no_trace",
        _BAD + "words_and_paths_that_cannot_be_used_run_nothing[run o.csv --report folder.csv",
    ),
    "C40": _row(
        _KILLED + "a_live_run_cannot_be_resumed_nor_started_again_in_its_directory",
        _KILLED + "nothing_starts_while_a_process_of_the_killed_run_lives",
        _JOURNAL + "a_journal_in_use_is_opened_by_nobody_else",
    ),
    "C41": _row(
        _KILLED + "a_process_that_has_got_the_managers_old_pid_is_not_killed",
        _PROCESSES + "an_owned_process_is_killed_but_not_an_older_one_with_its_pid",
    ),
    "C42": _row(
        _FAULTS + "who_is_connected_goes_on_without_the_sockets_file",
        _FAULTS + "workers_that_find_no_socket_end_the_run",
        note="exit code 4 (interface), after three workers have tried for CONNECT_WITHIN_S (60 s) each, not within 5 s",
    ),
    "C43": _row(_FAULTS + "a_system_without_semaphores_runs_a_batch"),
    "C44": _row(
        _JOURNAL + "in_one_boot_a_retry_is_due_when_it_was_whatever_the_wall_clock_says",
        _JOURNAL + "after_another_boot_a_retry_waits_the_rest_of_its_delay_and_never_longer",
        _KILLED + "a_batch_that_is_killed_again_and_again_ends_as_if_it_had_not_been",
    ),
    "C45": _row(
        _JOURNAL + "a_pause_outlives_a_crash_and_another_one_and_says_so",
        _LIVE + "a_paused_run_that_is_killed_stays_paused_and_says_so",
    ),
    "C46": _row(
        _WORKERS + "a_session_that_does_not_close_at_all_is_killed_and_that_is_told",
        _FAULTS + "a_manager_that_does_not_come_to_an_end_is_killed",
        _SERVICE + "a_service_whose_manager_is_stopped_can_be_ended",
    ),
    "C47": _row(
        _SUPERVISOR + "a_supervisor_started_in_a_thread_that_has_ended",
        _SUPERVISOR + "a_supervisor_in_a_thread",
        _FAULTS + "a_lock_that_a_thread_of_ours_holds_is_free_in_workers",
    ),
    "C48": _row("faults/test_soak.py::test_two_minutes_of_everything_at_random", note="two minutes at a time"),
    # ── D: bad inputs ────────────────────────────────────────────────────────────────────────────────────────────────
    "D1": _row(
        _SETTINGS + "a_file_that_cannot_be_read_is_called_by_its_fault",
        _SETTINGS + "a_file_that_sets_nothing_gives_the_defaults_and_a_note",
    ),
    "D2": _row(
        _SETTINGS + "what_is_not_plain_yaml_is_refused_with_its_place",
        _CLI + "a_bad_configuration_is_named_with_its_line",
    ),
    "D3": _row(_SETTINGS + "what_is_not_plain_yaml_is_refused_with_its_place"),
    "D4": _row(
        _SETTINGS + "an_unknown_key_is_refused_with_its_line",
        _SETTINGS + "an_unknown_name_is_told_the_key_that_it_means",
    ),
    "D5": _row(_SETTINGS + "what_is_not_plain_yaml_is_refused_with_its_place"),
    "D6": _row(_SETTINGS + "a_value_that_does_not_fit_is_refused_with_file_line_key_and_what_is_accepted[jobs-012"),
    "D7": _row(
        _SETTINGS + "an_alias_bomb_is_refused_without_being_expanded",
        _SETTINGS + "what_is_not_plain_yaml_is_refused_with_its_place",
        note="a configuration has at most 1 MB",
    ),
    "D8": _row(
        _SETTINGS + "python_values_are_checked_like_text",
        _SETTINGS + "a_value_that_does_not_fit_is_refused_with_file_line_key_and_what_is_accepted[jobs-0",
        note="the setting is called jobs, and takes auto and 50% as well (interface)",
    ),
    "D9": _row(
        _BAD + "a_time_limit_that_is_none_is_refused_with_what_is_accepted",
        _CONFIGURATION + "a_bad_timeout_is_refused_with_the_word_timeout",
        note="5s is a duration (interface); there is no 'off' (contract R28: positive and finite)",
    ),
    "D10": _row(
        _CONFIGURATION + "bad_retries_are_refused_with_the_word_retry",
        _SETTINGS + "a_retry_delay_above_its_limit_names_both_and_their_sources",
        _SETTINGS + "a_value_that_does_not_fit_is_refused_with_file_line_key_and_what_is_accepted[max_retries",
        note="the delay doubles (contract R4): there is no factor to set",
    ),
    "D11": _row(
        _ORDERS + "files_that_are_no_table_are_told_apart",
        _ORDERS + "a_file_that_may_not_be_read_says_so",
        _CLI + "five_when_there_is_nothing_to_do",
        note="a header alone is exit code 5, nothing to do (interface)",
    ),
    "D12": _row(
        _ORDERS + "a_byte_order_mark_is_no_part_of_the_header",
        _ORDERS + "what_is_not_utf_8_is_read_as_cp1252_with_a_note",
        _ORDERS + "a_given_encoding_is_used_and_a_wrong_one_refused",
        note="the encoding is found out (issue); what is none is refused, and what was guessed is noted",
    ),
    "D13": _row(_ORDERS + "a_nul_byte_is_refused_with_its_line"),
    "D14": _row(_ORDERS + "a_quote_that_is_never_closed_is_refused_with_the_line_that_opens_it"),
    "D15": _row(_ORDERS + "a_quote_that_is_never_closed_is_refused_with_the_line_that_opens_it"),
    "D16": _row(_ORDERS + "rows_of_another_width_are_invalid_unless_the_surplus_cells_are_blank"),
    "D17": _row(
        _ORDERS + "every_column_gets_a_name_of_its_own",
        _ORDERS + "a_missing_po_number_column_names_what_was_found_and_what_is_meant_perhaps",
        _ORDERS + "a_mapped_column_that_is_missing_or_repeated_is_named",
        _ORDERS + "several_columns_that_could_be_the_po_number_are_refused_and_other_fields_left_alone",
        _ORDERS + "a_field_is_found_without_case_blanks_dots_dashes_and_underscores",
    ),
    "D18": _row(
        _ORDERS + "the_delimiter_is_found_out",
        _ORDERS + "every_line_end_is_read_and_cells_may_hold_lines",
        _ORDERS + "blank_lines_and_rows_of_blanks_are_counted_and_keep_their_row_numbers",
    ),
    "D19": _row(
        _ORDERS + "what_only_looks_like_a_workbook_is_refused",
        _ORDERS + "old_excel_and_open_document_files_are_read",
        note="an .xls workbook is read (issue)",
    ),
    "D20": _row(_ORDERS + "zip_bombs_are_refused_before_they_are_unpacked"),
    "D21": _row(
        _BAD + "formulas_without_a_value_and_errors_are_empty_cells_and_never_text",
        _BAD + "a_merged_po_number_belongs_to_its_first_row_and_the_others_are_told",
        _ORDERS + "the_only_visible_sheet_with_data_is_read_and_several_must_be_chosen_from",
        note="the reader does not tell a formula without a value from an empty cell: as a PO number it is told as either",
    ),
    "D22": _row(_ORDERS + "cells_that_lost_their_po_number_are_invalid_with_their_address"),
    "D23": _row(
        _ORDERS + "a_po_number_that_cannot_be_one_makes_the_row_invalid",
        _ORDERS + "leading_zeros_and_the_text_nan_survive",
    ),
    "D24": _row(
        _ORDERS + "a_po_number_may_be_any_printable_text",
        _ORDERS + "a_po_number_that_cannot_be_one_makes_the_row_invalid",
        _SECURITY + "no_po_number_is_a_way_out_of_the_run_directory",
    ),
    "D25": _row(
        _ORDERS + "po_numbers_are_compared_exactly",
        "unit/test_dossier.py::test_different_po_numbers_give_different_names_also_where_case_is_ignored",
        _SECURITY + "no_po_number_is_a_way_out_of_the_run_directory",
    ),
    "D26": _row(
        _ORDERS + "duplicates_can_be_refused_naming_the_rows",
        _ORDERS + "duplicates_can_be_left_aside_after_the_first",
        _ORDERS + "duplicates_can_be_orders_of_their_own",
        "integration/test_real_files.py::test_all_invoices_of_one_po_are_one_task",
        _EDITED + "what_was_done_is_skipped_and_what_changed_in_the_file_is_run",
        note="the default groups them (interface); a run has one file",
    ),
    "D27": _row(
        _ORDERS + "what_is_no_amount_is_none",
        _ORDERS + "amounts_are_read_exactly_in_either_convention",
        _ORDERS + "an_amount_that_cannot_be_read_stays_as_it_is",
        _ORDERS + "no_text_makes_reading_an_amount_fail",
        note="an amount that is none stays text and makes no row invalid (issue)",
    ),
    "D28": _row(
        _ORDERS + "a_priority_that_is_no_whole_number_from_1_to_10_makes_the_row_invalid",
        _ADDING + "a_priority_that_is_no_int_from_1_to_10_is_refused_and_changes_nothing",
        note="1 to 10 (contract R5)",
    ),
    "D29": _row(
        _CLI + "a_bad_processor_is_one_message_and_no_run",
        _PROCESSING + "a_path_that_is_none_says_how_one_is_written",
        _PROCESSING + "lambdas_local_functions_and_classes_are_refused",
        _PROCESSING + "async_functions_and_generators_are_refused",
        _BATCH + "a_script_may_define_its_processor_itself",
        note="a processor in the script's own file is taken (issue)",
    ),
    "D30": _row(
        _CLI + "what_a_module_prints_while_it_is_imported_is_shown_with_its_error_and_in_the_log_otherwise",
        _BAD + "a_module_in_the_current_folder_is_not_imported_unasked",
        note="exit code 2 (interface)",
    ),
    "D31": _row(_PROCESSING + "functions_that_do_not_fit", _PROCESSING + "what_does_not_fit_is_told"),
    "D32": _row(
        _CLI + "two_for_a_mistake_on_the_command_line",
        _BAD + "words_and_paths_that_cannot_be_used_run_nothing",
        _BAD + "another_order_file_for_an_old_run_is_refused_until_accepted",
        _BAD + "a_run_that_goes_on_with_its_copy_of_the_order_file_keeps_it",
        note="--resume with a new input goes on if nothing has changed, or changes are accepted (issue)",
    ),
    "D33": _row(
        _EDITED + "six_distinct_messages_for_six_ways_of_having_no_journal",
        _JOURNAL + "no_other_file_is_taken_for_a_journal",
        note="all done is exit code 5, nothing to do (interface)",
    ),
    "D34": _row(
        _BAD + "words_and_paths_that_cannot_be_used_run_nothing",
        _BAD + "a_folder_that_cannot_be_written_to_is_told_before_anything_runs",
        _BAD + "an_output_in_the_place_of_a_file_of_the_run_is_refused",
        _BAD + "a_resumed_run_looks_at_its_outputs_first_as_well",
        _CLI + "two_for_a_mistake_on_the_command_line",
        _RESULTS + "a_second_place_that_cannot_be_one_is_refused_before_anything_is_written",
    ),
    "D35": _row(
        _BAD + "bad_tasks_are_refused_and_change_nothing",
        _BAD + "ids_and_large_data_survive_as_they_are",
        _BAD + "data_too_large_to_be_sent_are_no_lost_manager",
        _BAD + "a_closed_queue_refuses_changes",
        _ADDING + "a_known_id_is_never_merged",
        note="ValueErrors (contract); 50 MB are taken; only a journal closes, and then changes are JournalErrors",
    ),
    "D36": _row(
        _BAD + "bad_worker_ids_get_nothing",
        note="a worker need not be known, may hold several tasks, and get_next_task has no timeout (contract)",
    ),
    "D37": _row(
        _BAD + "bad_reports_are_refused_and_the_task_runs_on",
        _BAD + "a_report_after_the_task_was_cancelled_or_dropped_changes_nothing",
        _REPORTING + "a_report_after_the_lease_was_taken_back_changes_nothing",
        _REPORTING + "a_report_of_what_is_no_result_is_refused_and_the_task_runs_on",
        note="TaskNotFoundError and WorkerMismatchError, and a result is a TaskResult (contract)",
    ),
    "D38": _row(
        _BAD + "a_signal_handler_may_use_the_queue",
        _FAULTS + "a_handler_may_add_and_remove_itself",
        _BAD + "another_thread_and_another_client_see_the_same_queue",
    ),
    "D39": _row(
        _BAD + "a_client_is_no_value_to_be_handed_on",
        _SERVICE + "a_forked_copy_has_a_stream_of_its_own",
        _SERVICE + "a_lost_manager_is_told_at_once_and_every_time",
        _SERVICE + "exactly_the_public_methods_are_exposed",
    ),
    "D40": _row(
        _SERVICE + "a_wrong_key_is_refused_without_being_shown",
        _SERVICE + "keys_that_are_none_are_refused",
        _SERVICE + "other_kinds_of_address_are_refused",
        _SERVICE + "a_manager_that_cannot_start_is_an_error_of_ours",
        _LIVE + "a_control_file_that_others_may_read_is_refused",
        _BAD + "a_damaged_control_file_is_one_of_our_errors",
        _BAD + "a_control_file_of_another_kind_is_refused",
        _BAD + "a_long_run_directory_has_its_socket_elsewhere",
        note="where the path would be too long the socket goes to a temporary folder of ours (issue)",
    ),
    "D41": _row(
        _BATCH + "a_script_without_a_guard_is_told_so_once",
        _BAD + "a_script_that_is_no_file_is_told_so_once",
        note="a frozen application is none of the supported ways to run it",
    ),
    "D42": _row(
        _PROCESSING + "values_with_a_plain_form_are_kept",
        _PROCESSING + "values_without_a_plain_form_fail_the_attempt_and_name_the_place",
    ),
    # ── E: threats ───────────────────────────────────────────────────────────────────────────────────────────────────
    "E1": _row(
        _SECURITY + "a_pickle_from_somebody_without_the_key_is_never_opened",
        _SECURITY + "the_socket_is_a_path_in_a_folder_of_ours_alone_and_the_key_is_long",
        _SECURITY + "another_user_is_refused_before_a_thread_is_started_for_him",
        _LIVE + "another_user_is_refused_even_with_the_key",
        _SERVICE + "the_manager_never_opens_what_it_carries",
        note="requests are pickles of those who have proved the key; a run's POs and results are JSON",
    ),
    "E2": _row(_SERVICE + "other_kinds_of_address_are_refused", _SERVICE + "keys_that_are_none_are_refused"),
    "E3": _row(
        _LIVE + "the_key_stands_in_the_control_file_and_nowhere_else",
        _SERVICE + "the_key_is_in_no_environment_and_on_no_command_line",
        _SECURITY + "no_text_about_a_run_or_a_client_holds_the_key",
        _SECURITY + "everything_in_a_run_directory_is_for_its_owner_also_while_it_is_written",
    ),
    "E4": _row(_SERVICE + "other_kinds_of_address_are_refused", _SERVICE + "a_socket_that_others_could_reach_is_refused"),
    "E5": _row(_SECURITY + "a_system_without_md5_works_or_says_what_is_needed"),
    "E6": _row(
        _SECURITY + "no_po_number_is_a_way_out_of_the_run_directory",
        "unit/test_dossier.py::test_any_po_number_gives_a_name_that_is_no_path",
        "unit/test_dossier.py::test_a_folder_that_is_a_link_elsewhere_is_not_followed",
        "integration/test_download.py::test_any_path_and_any_header_give_a_name_inside_the_folder",
        _RESULTS + "a_link_in_the_place_of_a_file_is_not_followed",
    ),
    "E7": _row(
        _SECURITY + "formulas_of_pos_and_processors_run_in_no_spreadsheet",
        _RESULTS + "text_that_a_spreadsheet_would_run_gets_an_apostrophe",
        _RESULTS + "a_formula_in_a_later_line_of_a_cell_is_guarded_too",
        _EXPORTING + "csv_guards_what_a_spreadsheet_would_run",
        "unit/test_report_files.py::test_no_cell_of_the_csv_is_run_by_a_spreadsheet",
        note="no workbook is written, and there is no --raw",
    ),
    "E8": _row(
        _SECURITY + "a_bomb_of_5_gb_is_refused_by_what_it_says_of_itself",
        _ORDERS + "zip_bombs_are_refused_before_they_are_unpacked",
        _ORDERS + "a_sheet_with_a_stray_cell_at_its_far_end_is_refused_and_does_not_take_the_reader_along",
        note="the reader is calamine, which runs no formula and resolves no entity",
    ),
    "E9": _row(
        _SECURITY + "a_configuration_is_read_by_a_safe_loader",
        _SECURITY + "nothing_that_runs_code_is_used_on_data",
        _SETTINGS + "an_alias_bomb_is_refused_without_being_expanded",
    ),
    "E10": _row(
        _SECURITY + "nothing_that_runs_code_is_used_on_data",
        _SECURITY + "a_pickle_in_a_journal_is_not_opened",
        _SECURITY + "a_crashed_run_whose_journal_holds_a_pickle_is_resumed_or_reported_without_opening_it",
    ),
    "E11": _row(
        _BATCH + "a_po_cannot_forge_a_line_of_the_log",
        _PROGRESS + "text_of_orders_cannot_steer_the_terminal",
        "integration/test_screen.py::test_what_a_po_contains_cannot_steer_the_terminal",
        _SETTINGS + "safe_text_shows_what_is_visible_and_escapes_the_rest",
    ),
    "E12": _row(
        _SECURITY + "a_row_cannot_choose_its_processor_or_its_command",
        _SECURITY + "unknown_settings_are_no_way_to_another_processor",
    ),
    "E13": _row(
        _SECURITY + "only_processes_that_are_known_are_waited_for_and_killed",
        _PROCESSES + "killing_reaps_nobody_elses_child",
        _KILLED + "a_process_that_has_got_the_managers_old_pid_is_not_killed",
    ),
    "E14": _row(
        _SECURITY + "the_announcement_of_a_giant_message_takes_no_memory",
        _FAULTS + "no_more_connections_than_the_limit_are_held",
        _SERVICE + "a_silent_connection_is_dropped",
        _SERVICE + "junk_harms_only_its_own_connection",
        note="the limits are 1100 connections and 256 MB a request",
    ),
    "E15": _row(
        _SECURITY + "everything_in_a_run_directory_is_for_its_owner_also_while_it_is_written",
        _SECURITY + "a_run_directory_made_before_is_closed_to_others",
        _CLI + "only_the_owner_may_read_what_a_run_writes",
        _JOURNAL + "the_files_are_for_this_user_alone",
        "unit/test_report_files.py::test_a_redacted_report_holds_no_planted_secret",
    ),
    "E16": _not("there is no dashboard: the report page is a file, and what it escapes stands in test_report_page.py"),
    "E17": _not("there is no Ray backend"),
    "E18": _row(
        _SECURITY + "a_journal_with_more_or_less_in_it_than_ours_is_refused_or_harmless",
        _JOURNAL + "no_other_file_is_taken_for_a_journal",
        _BAD + "ids_and_large_data_survive_as_they_are",
    ),
    "E19": _row(
        _SECURITY + "the_queue_stands_on_little_more_than_the_standard_library",
        _SECURITY + "every_dependency_is_named_with_the_least_version_that_will_do",
        note="least versions are named, not installed: .ci/run takes the newest ones, on the oldest and the newest Python",
    ),
}  # fmt: skip
