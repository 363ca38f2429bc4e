"""What the lessons compute: functions of their settings, on the engine and the sample models. No streamlit here."""
