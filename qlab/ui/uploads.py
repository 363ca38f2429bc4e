"""File uploaders that write to disk at once and give Streamlit's copy in memory back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st
from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager
from streamlit.runtime.scriptrunner import get_script_run_ctx
from streamlit.runtime.uploaded_file_manager import UploadedFile

from qlab.errors import QLabError
from qlab.ui import errors, library

if TYPE_CHECKING:
    from qlab.lab.store import Artifact


def receive(
    label: str,
    kind: str,
    check: Callable[[Path], Any],
    accept: Callable[[Artifact], None],
    *,
    key: str,
    text: str,
    megabytes: int | None = None,
) -> None:
    """An uploader for a model or data file.

    check: reads the file and raises a QLabError if it is no good; accept: makes the stored file the current one. What
    was refused is shown here in one box until the next upload, and what was chosen before stays usable.
    megabytes: the largest file; None takes what the server takes.
    """
    turn = st.session_state.setdefault(f"{key}_turn", 0)
    # Without type=: a wrong kind should arrive and be told what to do instead of being greyed out in the file dialog.
    file = st.file_uploader(label, key=f"{key}_{turn}", help=text, max_upload_size=megabytes)
    if file is None:
        if failed := st.session_state.get(f"{key}_error"):
            errors.show(failed)
        return
    with st.spinner(f"Reading {file.name}"):
        try:
            accept(library.add_upload(file, file.name, kind, check))
            st.session_state.pop(f"{key}_error", None)
        except QLabError as error:
            st.session_state[f"{key}_error"] = error
        finally:
            _free(file)
    # A new key is the only way to empty an uploader.
    st.session_state[f"{key}_turn"] = turn + 1
    st.rerun()


def _free(file: UploadedFile) -> None:
    file.close()
    context = get_script_run_ctx()
    manager = None if context is None else context.uploaded_file_mgr
    # The interface has no way to remove one file, the manager that holds files in memory has.
    if context is not None and isinstance(manager, MemoryUploadedFileManager):
        manager.remove_file(context.session_id, file.file_id)
