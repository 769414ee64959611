"""Metadata tables: delimited text, workbooks."""
