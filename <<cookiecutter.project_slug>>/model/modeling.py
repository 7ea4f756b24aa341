<<% include cookiecutter.task ~ "/modeling.py" %>>
