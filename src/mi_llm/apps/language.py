"""The language of the chat's and the desk's pages: the visitor's choice, else what the browser asks for."""

from typing import Literal, cast, get_args

from starlette.requests import Request
from werkzeug.datastructures import LanguageAccept
from werkzeug.http import parse_accept_header

Tongue = Literal["zh", "en"]


def language(request: Request) -> Tongue:
    """`?lang=`, else the cookie of an earlier choice, else the first language of Accept-Language that we have, else English.

    Regions and scripts are ignored: `zh-TW` counts as `zh`. `best_match` of werkzeug is not used, since it prefers an
    exact `en;q=0.2` to `zh-CN;q=0.7`.
    """
    chosen = request.query_params.get("lang") or request.cookies.get("lang")
    accepted = parse_accept_header(request.headers.get("accept-language"), LanguageAccept)
    preferred = [chosen, *(tag.partition("-")[0].lower() for tag, quality in accepted if quality > 0)]
    return next((cast(Tongue, name) for name in preferred if name in get_args(Tongue)), "en")
