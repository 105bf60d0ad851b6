"""The language in which the chat and the desk speak to a visitor: the visitor's choice, else what the browser asks for."""

from typing import Literal, cast, get_args

from starlette.requests import Request
from werkzeug.datastructures import LanguageAccept
from werkzeug.http import parse_accept_header

Tongue = Literal["zh", "en"]


def language(request: Request) -> Tongue:
    """`?lang=`, else the cookie of an earlier choice, else the best language of Accept-Language that there is, else English.

    Regions and scripts of a language are all one: `zh-TW` is `zh`. `best_match` of werkzeug is not used, since it prefers an
    exact `en;q=0.2` to `zh-CN;q=0.7`.
    """
    chosen = request.query_params.get("lang") or request.cookies.get("lang")
    asked = parse_accept_header(request.headers.get("accept-language"), LanguageAccept)
    wanted = [chosen, *(tag.partition("-")[0].lower() for tag, quality in asked if quality > 0)]
    return next((cast(Tongue, name) for name in wanted if name in get_args(Tongue)), "en")
