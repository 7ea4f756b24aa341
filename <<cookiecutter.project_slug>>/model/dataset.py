<<% include cookiecutter.task ~ "/dataset.py" %>>
