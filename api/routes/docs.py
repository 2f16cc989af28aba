"""The API's documentation, served from here: no page of it asks another host for anything."""

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import RedirectResponse, Response
from starlette.staticfiles import StaticFiles

ASSETS = "/docs/assets"
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data:; frame-ancestors 'none'"
)
_PARAMETERS = {"validatorUrl": None, "tryItOutEnabled": True, "persistAuthorization": True}

router = APIRouter(include_in_schema=False)


@router.get("/")
async def root() -> Response:
    """Send a browser to the documentation."""
    return RedirectResponse("/docs")


@router.get("/docs")
async def docs() -> Response:
    """Swagger UI over this app's OpenAPI document."""
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Headrace API",
        swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS}/favicon.png",
        swagger_ui_parameters=_PARAMETERS,
    )
    page.headers["content-security-policy"] = _POLICY
    return page


def install_docs(app: FastAPI) -> None:
    """Serve the page and Swagger UI's files, which the package ``fastapi-offline`` ships."""
    directory = Path(str(files("fastapi_offline"))) / "static"
    app.include_router(router)
    app.mount(ASSETS, StaticFiles(directory=directory), name="docs-assets")
