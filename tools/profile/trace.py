"""A run as a trace in the JSON format of Chrome's and Perfetto's viewers: one cycle is shown as a microsecond."""

__all__ = ["trace"]

UNITS = ("execute", "store", "load", "transfer")


def trace(profiles, title):
    """Return the trace as a dict to be written as JSON.

    Source: Google, *Trace Event Format*, complete events (``"ph": "X"``) and metadata (``"M"``).

    Parameters
    ----------
    profiles : sequence of Profile
        Engine segments, one after the other.
    title : str
    """
    events = []
    offset = 0
    for number, profile in enumerate(profiles, 1):
        name = title if len(profiles) == 1 else f"{title}, part {number}"
        events.append({"ph": "M", "pid": number, "name": "process_name", "args": {"name": name}})
        for place, unit in enumerate(UNITS):
            events.append({"ph": "M", "pid": number, "tid": place, "name": "thread_name", "args": {"name": unit}})
            events.append({"ph": "M", "pid": number, "tid": place, "name": "thread_sort_index", "args": {"sort_index": place}})
        owners = profile.program.owners
        for event in profile.events:
            layer = profile.layers[owners[event.index]]
            facts = {"instruction": event.index, "operator": layer.operator, "stalled": event.stall, "waited": event.wait}
            events.append({
                "ph": "X", "pid": number, "tid": UNITS.index(event.unit), "name": layer.name, "cat": event.unit, "ts": offset + event.start,
                "dur": event.end - event.start, "args": facts,
            })  # fmt: skip
        offset += profile.cycles
    return {"traceEvents": events, "displayTimeUnit": "ns", "otherData": {"unit": "one cycle is shown as one microsecond"}}
