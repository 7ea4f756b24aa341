<<% include cookiecutter.task ~ "/configuration.py" %>>
