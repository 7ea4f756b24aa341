"""Check the answers once more, since --replay asks no questions and skips their checks.

The check happens when Cookiecutter renders this file. Running the rendered file does nothing.
"""

# <<% for key in ("project_name", "project_slug", "description", "author", "task", "base_model") %>>
# <<% set _ = cookiecutter[key] | check(key) %>>
# <<% endfor %>>
