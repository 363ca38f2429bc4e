"""The part of qlab that knows Streamlit: state, controls, caching, job widgets and the frame of every page.

A page imports `frame`, `state`, `cache`, `errors` and `widgets` from here and the engine inside its functions, because
an import of torch at the top of a page would delay its first paint.
"""
