"""Check the answers once more: --replay asks no questions, so it skips the checks between them.

Rendering this file does the work, and stops at the first bad answer. Run, it does nothing.
"""

# <<% for key in ("project_name", "project_slug", "description", "author", "task", "base_model") %>>
# <<% set _ = cookiecutter[key] | check(key) %>>
# <<% endfor %>>
