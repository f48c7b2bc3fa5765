"""The processors that come with poqueue: `dossier` (the default), `download` and `command`."""
