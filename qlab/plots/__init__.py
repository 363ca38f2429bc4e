"""Data to plotly figures. Pure: nothing here imports streamlit, reads state or runs a model."""
