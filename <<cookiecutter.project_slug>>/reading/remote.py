def list_remote(part):
    return [part]


def fetch(file, folder):
    return file
