<<% include cookiecutter.task ~ "/metrics.py" %>>
