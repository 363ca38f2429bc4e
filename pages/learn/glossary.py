"""The glossary: every word of the lab, and the lesson that teaches it."""

import streamlit as st

from qlab.ui import curriculum, errors, frame, glossary

frame.header(
    "What does the word mean?",
    "Every word of the lab in a sentence or two. In the texts of the other pages these words are underlined with dots: "
    "point at one to read what it means, click it to come here.",
    explain="Words are linked where they first appear in a text. A lesson beside a word shows it at work on live "
    "numbers.",
    present=True,
)


def entry(term: str) -> None:
    with st.container(horizontal=True, key=f"glossary_{term}"):
        st.markdown(f"**{term}** – {glossary.TERMS[term]}", width="stretch")
        if slug := glossary.TAUGHT.get(term):
            label = f"Lesson {curriculum.number(slug)}"
            st.page_link(curriculum.page(slug), label=label, help=f"Opens “{curriculum.LESSONS[slug]}”.")


with errors.box():
    asked = st.query_params.get("word", "")
    if asked in glossary.TERMS:
        with st.container(border=True):
            entry(asked)
    elif asked:
        st.info(f"“{errors.escape(asked)}” is not in the glossary.")
    sought = st.text_input("Find", key="glossary_find", placeholder="a word", help="Shows the words that contain this.")
    order = sorted(glossary.TERMS, key=str.lower)
    found = [term for term in order if sought.lower() in f"{term} {glossary.TERMS[term]}".lower() and term != asked]
    if not found:
        st.info("No word here contains this. The lessons explain more: see Learn in the menu.")
    for term in found:
        entry(term)
