"use strict";
// What the page does beyond showing: colours of the charts, zoom, copying. Without it everything can still be read.
document.documentElement.classList.add("js");

(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const MOST_FRAMES = 3000;   // a minute or so; charts that are not there by then never come

  const names = [...document.querySelectorAll("[data-chart]")].map((one) => one.dataset.chart);
  const views = () => (window.Bokeh ? Bokeh.index.roots.filter((one) => names.includes(one.model.name)) : []);
  const view = (name) => views().find((one) => one.model.name === name);

  function paint(is_dark, font_px = 12) {
    const colours = is_dark
      ? {text: "#c9d1d8", grid: "#2a3036", line: "#56606a", mark: "#ffffff"}
      : {text: "#3d464e", grid: "#e4e8ec", line: "#98a2ab", mark: "#14171a"};
    const font = `${font_px}px`;
    for (const {model} of views()) {
      for (const axis of [...model.below, ...model.left]) {
        axis.setv({axis_label_text_color: colours.text, major_label_text_color: colours.text,
          axis_line_color: colours.line, major_tick_line_color: colours.line,
          major_label_text_font_size: font, axis_label_text_font_size: font});
      }
      for (const {name, glyph} of model.renderers) {
        if (name === "kill") glyph.setv({line_color: colours.mark});   // on red as on orange
      }
      for (const part of model.center) {
        if (part.type === "Grid" && part.grid_line_color !== null) part.setv({grid_line_color: colours.grid});
      }
    }
  }

  // Paper has another width, and what is drawn for it must be there at once: each chart is copied, in light colours and
  // with letters that can be read when the copy is made smaller.
  const PAPER_PX = 690;

  function lay_on_paper() {
    const widest = Math.max(...views().map((one) => one.bbox.width));
    paint(false, Math.min(12 * Math.max(1, widest / PAPER_PX), 17));
    for (const one of views()) {
      const copy = one.export("png").canvas;
      copy.className = "paper";
      copy.style.cssText = "";
      document.querySelector(`[data-chart=${one.model.name}]`).append(copy);
    }
  }

  function take_off_paper() {
    for (const copy of document.querySelectorAll(".paper")) copy.remove();
    paint(dark.matches);
  }

  function ready() {
    paint(dark.matches);
    dark.addEventListener("change", () => paint(dark.matches));
    addEventListener("beforeprint", lay_on_paper);
    addEventListener("afterprint", take_off_paper);
    for (const one of views()) one.canvas_view?.events_el?.removeAttribute("tabindex");   // nothing to do there by keyboard
    const range = view("timeline")?.model.x_range;
    if (range) zoomable(range);
    for (const box of document.querySelectorAll("[data-series]")) {
      box.addEventListener("change", () => toggle(box.dataset.series, box.checked));
    }
    document.documentElement.dataset.charts = "ready";
  }

  function toggle(series, is_visible) {
    const {model} = view("timeline");
    const parts = series === "pause" ? model.center : model.renderers;
    for (const part of parts) if (part.name === series) part.visible = is_visible;
  }

  function zoomable(range) {
    const [first, last] = [range.start, range.end];
    const steps = {in: [0.25, 0.75], out: [-0.5, 1.5], earlier: [-0.5, 0.5], later: [0.5, 1.5]};
    const show = (start, end) => {
      const width = Math.min(Math.max(end - start, 1), last - first);
      const left = Math.min(Math.max(start, first), last - width);
      range.setv({start: left, end: left + width});
    };
    for (const button of document.querySelectorAll("[data-zoom]")) {
      button.addEventListener("click", () => {
        const step = steps[button.dataset.zoom];
        const width = range.end - range.start;
        if (step) show(range.start + step[0] * width, range.start + step[1] * width);
        else show(first, last);
        tell(range);
      });
    }
  }

  function tell(range) {
    const clock = (at) => new Date(at).toISOString().slice(11, 23);
    document.getElementById("shown").textContent = `Shown: ${clock(range.start)} to ${clock(range.end)}`;
  }

  for (const button of document.querySelectorAll("[data-copies]")) {
    button.addEventListener("click", async () => {
      const text = document.getElementById(button.dataset.copies);
      const told = document.getElementById("copied");
      try {
        await navigator.clipboard.writeText(text.textContent);
        told.textContent = "Copied.";
      } catch {
        getSelection().selectAllChildren(text);
        told.textContent = "Selected; copy it with your keyboard.";
      }
    });
  }

  function opened(is_open) {   // on paper everything is unfolded
    for (const one of document.querySelectorAll("details:not(.long)")) {
      if (is_open && !one.open) { one.open = true; one.dataset.unfolded = ""; }
      if (!is_open && "unfolded" in one.dataset) { one.open = false; delete one.dataset.unfolded; }
    }
  }
  addEventListener("beforeprint", () => opened(true));
  addEventListener("afterprint", () => opened(false));

  (function wait(frames) {
    if (names.length === 0 || frames > MOST_FRAMES) document.documentElement.dataset.charts = "none";
    else if (views().length < names.length) requestAnimationFrame(() => wait(frames + 1));
    else ready();
  })(0);
})();
