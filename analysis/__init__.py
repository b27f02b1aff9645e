"""Run records to tidy frames, statistics, tables, figures and one report. Never imports torch."""
