<<% include cookiecutter.task ~ "/loss.py" %>>
