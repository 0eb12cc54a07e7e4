"""The paper's tables in miniature: settings and seeds under one budget, evaluated, summarised and written."""
