<<% include cookiecutter.task ~ "/prediction.py" %>>
