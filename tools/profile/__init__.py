"""Where the cycles of a run went: causes, an HTML page, and a trace for a viewer."""
