"""A stand-in of fastapi where it is not installed."""


class HTTPException(Exception):
    def __init__(self, status_code, detail=None, headers=None):
        super().__init__(detail)
        self.status_code, self.detail = status_code, detail


class FastAPI:
    def __init__(self):
        self.added = {}

    def add_api_route(self, path, endpoint, methods, dependencies):
        self.added[path] = (endpoint, methods, dependencies)


def Depends(dependency):
    return dependency
