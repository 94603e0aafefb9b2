"""Sizes that are not written in the model: one large prime for each symbol, so that factoring still works."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from operator import add, mul, sub

import onnx_ir as ir

# Every real size is smaller, so a product of symbols can be taken apart again without ambiguity.
FIRST_SYMBOL = 2**31
LARGEST = 2**63 - 1
_WITNESSES = (2, 3, 5, 7, 11, 13, 17)  # decides primality below 3.4e14 (Jaeschke 1993)
_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {ast.Add: add, ast.Sub: sub, ast.Mult: mul}


def is_symbolic(size: int) -> bool:
    """Say whether a size stands for a symbol or for arithmetic on one."""
    return abs(size) >= FIRST_SYMBOL


def is_open(bound: int) -> bool:
    """Say whether only the run tells an integer; the largest ones stand for the ends of every axis.

    >>> is_open(2**63 - 1), is_open(7), is_open(3 * (FIRST_SYMBOL + 11))
    (False, False, True)
    """
    return is_symbolic(bound) and abs(bound) < LARGEST


class Symbols:
    """Gives every symbol a prime, the same symbol the same prime.

    >>> symbols = Symbols()
    >>> batch = symbols.size_of("batch")
    >>> symbols.size_of("12*batch") == 12 * batch
    True
    """

    def __init__(self, known: dict[str, int] | None = None) -> None:
        self._primes = _primes(FIRST_SYMBOL)
        self._sizes: dict[str, int] = dict(known or {})
        self._names: dict[int, str] = {}

    def size_of(self, symbol: str) -> int:
        """Return the size that stands for a symbol or for a sum or product of symbols."""
        if symbol not in self._sizes:
            computed = None if symbol.isidentifier() else self._compute(symbol)
            self._sizes[symbol] = self._fresh(symbol) if computed is None else computed
        return self._sizes[symbol]

    def unknown(self, name: str) -> int:
        """Return a size for something that has no symbol, by a name of its own."""
        key = f"?{name}"
        if key not in self._sizes:
            self._sizes[key] = self._fresh(key)
        return self._sizes[key]

    def name_of(self, size: int) -> str | None:
        """Return the symbol that a prime stands for."""
        return self._names.get(size)

    def learn(self, prime: int, size: int) -> bool:
        """Note what a symbol must be; say whether that is news."""
        name = self._names.get(prime)
        if name is None or is_symbolic(size):
            return False
        self._sizes[name] = size
        return True

    def restart(self) -> Symbols:
        """Start again with what was learnt."""
        return Symbols({name: size for name, size in self._sizes.items() if not is_symbolic(size)})

    def _fresh(self, name: str) -> int:
        prime = next(self._primes)
        self._names[prime] = name
        return prime

    def _compute(self, text: str) -> int | None:
        try:
            return self._value(ast.parse(text, mode="eval").body)
        except (SyntaxError, ValueError, RecursionError):
            return None

    def _value(self, node: ast.expr) -> int | None:
        if isinstance(node, ast.Name):
            return self.size_of(node.id)
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            left, right = self._value(node.left), self._value(node.right)
            return None if left is None or right is None else _OPERATORS[type(node.op)](left, right)
        return None


def shape_sizes(shape: Iterable[int | ir.SymbolicDimProtocol], symbols: Symbols, name: str) -> list[int]:
    """Return the sizes of a shape, symbols as primes; `name` tells unknown axes apart."""
    sizes = []
    for axis, dim in enumerate(shape):
        if isinstance(dim, int):
            sizes.append(dim)
        elif dim.value is not None:
            sizes.append(symbols.size_of(dim.value))
        else:
            sizes.append(symbols.unknown(f"{name}[{axis}]"))
    return sizes


def _primes(start: int) -> Iterator[int]:
    candidate = start + 1
    while True:
        if _is_prime(candidate):
            yield candidate
        candidate += 2


def _is_prime(number: int) -> bool:
    """Miller and Rabin's test, exact for the numbers used here."""
    if any(number % witness == 0 for witness in _WITNESSES):
        return False
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    return all(_passes(pow(witness, odd, number), number, twos) for witness in _WITNESSES)


def _passes(power: int, number: int, twos: int) -> bool:
    if power in (1, number - 1):
        return True
    for _ in range(twos - 1):
        power = power * power % number
        if power == number - 1:
            return True
    return False
