"""What a task printed and displayed."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any


class TaskOutput:
    """The output of a task: a list of Jupyter outputs, in order.

    Attributes
    ----------
    items : list of dict
        As in a notebook file: `output_type` is `stream`, `display_data`, `execute_result` or
        `error`; adjacent pieces of a stream are one, `clear_output` and updates are applied.
    """

    def __init__(self, notes: Sequence[bytes]) -> None:
        self.items: list[dict[str, Any]] = []
        for note in notes:
            self._add(json.loads(note))

    def _add(self, item: dict[str, Any]) -> None:
        kind = item.get("output_type")
        if kind == "clear_output":
            self.items.clear()
        elif kind == "update_display_data":
            self._update(item)
        elif kind == "stream" and self.items and self._continues(item):
            self.items[-1]["text"] += item["text"]
        else:
            self.items.append(item)

    def _continues(self, item: dict[str, Any]) -> bool:
        last = self.items[-1]
        return last.get("output_type") == "stream" and last.get("name") == item.get("name")

    def _update(self, item: dict[str, Any]) -> None:
        wanted = item.get("transient", {}).get("display_id")
        for known in self.items:
            if wanted and known.get("transient", {}).get("display_id") == wanted:
                known["data"] = item.get("data", {})
                known["metadata"] = item.get("metadata", {})

    @property
    def text(self) -> str:
        """Everything as plain text: streams, and the text form of what was displayed."""
        return "".join(_text_of(item) for item in self.items)

    def show(self) -> None:
        """Display everything again, here."""
        import sys

        from IPython.display import publish_display_data

        for item in self.items:
            if item.get("output_type") == "stream":
                stream = sys.stderr if item.get("name") == "stderr" else sys.stdout
                stream.write(item["text"])
            elif "data" in item:
                publish_display_data(item["data"], item.get("metadata") or {})  # type: ignore[no-untyped-call]
            else:
                sys.stderr.write(_text_of(item))

    def __len__(self) -> int:
        return len(self.items)

    def __bool__(self) -> bool:
        return bool(self.items)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return self.text or "<no output>"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.text)}</pre>" if self.items else "<i>no output</i>"


def _text_of(item: dict[str, Any]) -> str:
    if item.get("output_type") == "stream":
        return str(item.get("text", ""))
    if item.get("output_type") == "error":
        return "\n".join(item.get("traceback", ())) + "\n"
    text = item.get("data", {}).get("text/plain", "")
    return ("".join(text) if isinstance(text, list) else str(text)) + "\n"
