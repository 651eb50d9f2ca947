"""Parts of a strategy from what a user gives: an object, a config dict, or nothing."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

T = TypeVar("T")


def settings(part: object, **more: object) -> str:
    """For the ``repr`` of a module: the arguments that it keeps under their names, and ``more``."""
    names = inspect.signature(type(part)).parameters
    kept = {name: getattr(part, name) for name in names if hasattr(part, name)} | more
    # Modules among them are printed as children.
    return ", ".join(
        f"{name}={value!r}" for name, value in kept.items() if not isinstance(value, nn.Module)
    )


def build(
    given: Mapping[str, Any] | T | None,
    base: type[T],
    known: Mapping[str, type[T]],
    role: str,
    **defaults: Any,
) -> T:
    """The object that ``given`` is or describes.

    Args:
        given: an object of class ``base``, which is taken as it is; or ``dict(type=..., ...)`` with
            the name of one of ``known``, or with a class of one's own, and its arguments; or None
            for the first of ``known``. The type may be left out where only one is known.
        base: the class that the part has to have.
        known: classes by name.
        role: the name of the argument, for messages.
        defaults: arguments that are used where the config is silent and the class takes them; one's
            own only where it has no default for them.

    Raises:
        ValueError: no or an unknown type.
        TypeError: neither a dict nor such an object, or an argument that the class does not take.
    """
    first = next(iter(known))
    if given is None:
        given = {"type": first}
    if not isinstance(given, Mapping):
        if isinstance(given, base):
            return given
        hint = f"; did you mean {given.__name__}()?" if isinstance(given, type) else ""
        raise TypeError(
            f"{role} expected a {base.__name__}, or a dict such as {role}=dict(type={first!r}, "
            f"...), got {given!r}{hint}"
        )
    config = dict(given)
    config.pop("_scope_", None)  # mmengine marks dicts that a base config brought in
    kind = config.pop("type", first if len(known) == 1 else None)
    cls: Any = known.get(kind) if isinstance(kind, str) else kind
    if not isinstance(cls, type) or not issubclass(cls, base):
        raise ValueError(
            f"unknown {role} type {kind!r}; expected {role}=dict(type=...) with one of "
            f"{sorted(known)} or a subclass of {base.__name__}"
        )
    taken = inspect.signature(cls).parameters
    parameters = {
        name: parameter
        for name, parameter in taken.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    # nn.Module's own, of a class without an __init__, takes any by its signature alone.
    takes_any = cls.__init__ is not nn.Module.__init__ and any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()
    )
    unknown = [] if takes_any else sorted(set(config) - set(parameters))
    if unknown:
        owner = "; the ratio is the strategy's own argument mask_ratio"
        raise TypeError(
            f"{role} {kind!r} does not take {', '.join(unknown)}; it takes "
            f"{', '.join(parameters) or 'no arguments'}{owner if 'mask_ratio' in unknown else ''}"
        )
    # A class of one's own that has a default of its own keeps it.
    ours = cls in known.values()
    wanted = [name for name, p in parameters.items() if ours or p.default is p.empty]
    config = {name: defaults[name] for name in wanted if name in defaults} | config
    needed = [name for name, p in parameters.items() if p.default is p.empty]
    if missing := [name for name in needed if name not in config]:
        raise TypeError(f"{role} {kind!r} expected {', '.join(missing)}, got {dict(given)}")
    return cls(**config)
