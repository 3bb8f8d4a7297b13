"""What my_read may return, and how it comes back; what it may not, and why."""

from __future__ import annotations

import warnings
from pathlib import Path

import h5py
import numpy as np
import PIL.Image
import pytest

from converter import H5Folder
from converter.sources.storable import as_storable
from helpers.check import assert_same, case, failures, stored
from helpers.run import Finished, command, read_with, run, write_functions

PADDED = "np.dtype([('a', 'u1'), ('b', '<f8'), ('c', '>i2', (3,))], align=True)"
NESTED = "np.dtype([('x', np.dtype([('a', 'u1'), ('b', '<i8')], align=True)), ('y', 'i1')])"

VALUES = {
    "number": "7",
    "negative_float": "-0.0",
    "truth": "True",
    "complex_number": "1 + 2j",
    "zero_dimensions": "np.array(3, np.int16)",
    "numpy_scalar": "np.float32(1.5)",
    "empty": "np.zeros(0, np.float32)",
    "empty_in_the_middle": "np.zeros((3, 0, 2), np.uint8)",
    "empty_list": "[]",
    "one_dimension": "np.arange(5)",
    "two_dimensions": "np.arange(6).reshape(2, 3)",
    "three_dimensions": "np.arange(24).reshape(2, 3, 4)",
    "four_dimensions": "np.arange(120).reshape(2, 3, 4, 5)",
    "five_dimensions": "np.arange(720).reshape(2, 3, 4, 5, 6)",
    "as_many_dimensions_as_there_can_be": "np.arange(64).reshape((2,) * 6 + (1,) * 26)",
    "as_many_dimensions_compressed": "np.zeros((2,) * 14 + (1,) * 18, np.int32)",
    "nested_list": "[[1, 2.5], [3, 4]]",
    "tuple": "(1, 2, 3)",
    "range": "range(4)",
    "list_of_truths": "[True, False]",
    "truths": "np.arange(3000) % 3 == 0",
    "uint8": "np.arange(256, dtype=np.uint8)",
    "int8": "np.arange(-128, 128, dtype=np.int8)",
    "uint64": "np.array([2**64 - 1, 0], np.uint64)",
    "float16": "np.array([1.5, np.inf, np.nan, -0.0, 6e-8], np.float16)",
    "float32": "np.linspace(0, 1, 7, dtype=np.float32)",
    "nan_with_payload": "np.array([0x7FF8000000000123], np.uint64).view(np.float64)",
    "complex64": "np.array([1 + 2j, -3j], np.complex64)",
    "complex128": "np.array([[1 + 2j], [-3j]])",
    "big_endian_integers": "np.arange(5, dtype='>i4')",
    "big_endian_floats": "np.arange(5, dtype='>f8')",
    "big_endian_complex": "np.arange(5, dtype='>c8')",
    "compound": "np.array([(1, 2.5), (3, 4.5)], [('a', 'i4'), ('b', 'f8')])",
    "compound_scalar": "np.array([(1, 2.5)], [('a', 'i4'), ('b', 'f8')])[0]",
    "compound_with_all_kinds": "np.zeros(3, [('t', '?'), ('c', 'c8'), ('s', 'S5'), ('h', 'f2')])",
    "compound_without_padding": f"rfn.repack_fields(np.ones(4, {PADDED}))",
    "compound_in_compound": f"rfn.repack_fields(np.ones(4, {NESTED}), recurse=True)",
    "compound_aligned_as_it_is": "np.ones(4, np.dtype([('a', 'i4'), ('b', 'i4')], align=True))",
    "compound_with_odd_names": "np.ones(2, [('größe / mm', 'f4'), ('', 'i4')])",
    "record_array": "np.rec.array([(1, 2.5), (3, 4.5)], dtype=[('a', 'i4'), ('b', 'f8')])",
    "fixed_strings": "np.array([b'a', b'bcd'])",
    "opaque": "np.array([b'ab\\0', b'cd\\0'], 'V3')",
    "fortran_order": "np.asfortranarray(np.arange(12).reshape(3, 4))",
    "negative_strides": "np.arange(12).reshape(3, 4)[::-1, ::-2]",
    "broadcast": "np.broadcast_to(np.int16(4), (5, 6))",
    "transposed_large": "np.arange(10**6, dtype=np.int32).reshape(1000, 1000).T",
    "subclass_of_int": "Count(5)",
    "matrix": "np.matrix([[1, 2]])",
    "bytes_in_a_memoryview": "memoryview(bytes(range(9)))",
    "masked_out_nothing": "np.ma.array([1, 2]).filled()",
    "read_only": "np.frombuffer(b'abcdefgh', '<u4')",
    "enum": "np.array([0, 1], h5py.enum_dtype({'OFF': 0, 'ON': 1}))",
}

TEXTS = {
    "text": ("'grüße'", "text"),
    "empty_text": ("''", "text"),
    "text_with_nulls": ("'a\\0b\\0\\0'", "text"),
    "numpy_text": ("np.str_('abc')", "text"),
    "subclass_of_str": ("Name('abc')", "text"),
    "raw": ("b'\\xff\\0\\0'", "bytes"),
    "empty_raw": ("b''", "bytes"),
    "byte_array": ("bytearray(b'ab\\0')", "bytes"),
}

REFUSED = {
    "none": ("None", "returned None: return an array"),
    "object": ("np.array([1, 'a', None], object)", "Python objects: return numbers"),
    "set": ("{1, 2}", "Python objects: return numbers"),
    "dictionary": ("{'a': 1}", "Python objects: return numbers"),
    "generator": ("(i for i in range(3))", "Python objects: return numbers"),
    "too_large_integer": ("[2**70]", "Python objects: return numbers"),
    "decimal": ("__import__('decimal').Decimal('1.5')", "Python objects: return numbers"),
    "object_in_compound": ("np.zeros(2, [('a', object)])", "Python objects: return numbers"),
    "texts": ("['a', 'bc']", "dtype U"),
    "text_array": ("np.array('abc')", "dtype U"),
    "text_in_compound": ("np.zeros(2, [('a', 'U3')])", "return"),
    "date": ("np.array('2020-01-01', 'M8[D]')", "return .astype('int64')"),
    "dates": ("np.array(['2020-01-01'], 'M8[ns]')", "return .astype('int64')"),
    "time_spans": ("np.array([1, 2], 'm8[s]')", "return .astype('int64')"),
    "masked": ("np.ma.array([1, 2], mask=[0, 1])", ".filled(value)"),
    "masked_without_mask": ("np.ma.array([1, 2])", ".filled(value)"),
    "masked_constant": ("np.ma.masked", ".filled(value)"),
    "ragged": ("[[1, 2], [3]]", "pad it"),
    "33_dimensions": ("np.zeros((1,) * 33)", "33 dimensions, HDF5 holds 32"),
    "empty_compound": ("np.zeros(3, [])", "return"),
    "gaps": (f"np.ones(4, {PADDED})", "repack_fields(array, recurse=True)"),
    "gaps_in_a_field": (f"np.ones(4, {NESTED})", "repack_fields(array, recurse=True)"),
    "gaps_in_a_subarray": (
        f"np.ones(4, [('x', {PADDED}, (2,)), ('y', 'i1')])",
        "repack_fields(array, recurse=True)",
    ),
    "gap_at_the_end": (
        "np.ones(3, np.dtype({'names': ['a'], 'formats': ['i4'], 'itemsize': 31}))",
        "repack_fields(array, recurse=True)",
    ),
    "fields_out_of_order": (
        "np.ones(3, {'names': ['a', 'b'], 'formats': ['i4', 'i4'], 'offsets': [4, 0]})",
        "repack_fields(array, recurse=True)",
    ),
    "overlapping_fields": (
        "np.ones(3, {'names': ['a', 'b'], 'formats': ['i4', 'i2'], 'offsets': [0, 2]})",
        "repack_fields(array, recurse=True)",
    ),
    "lone_surrogate": ("'\\ud800'", "UnicodeEncodeError"),
}

RAISED = {
    "value_error": ("raise ValueError('no such thing')", "ValueError: no such thing"),
    "two_lines": ("raise ValueError('one\\ntwo')", "ValueError: one two"),
    "without_message": ("raise ValueError", "ValueError"),
    "assertion": ("assert 1 == 2", "AssertionError"),
    "exit": ("raise SystemExit(3)", "SystemExit: 3"),
    "exit_by_function": ("__import__('sys').exit('stop')", "SystemExit: stop"),
    "recursion": ("return deeper(1)", "RecursionError"),
    "no_memory": ("return np.ones(1 << 50)", "MemoryError"),
    "odd_init": ("raise OddInit(1, 2)", "OddInit"),
    "odd_str": ("raise OddStr()", "OddStr"),
    "odd_repr_in_key_error": ("raise KeyError(OddRepr())", "KeyError"),
    "operating_system": ("raise OSError(28, 'No space left on device')", "No space left on device"),
    "bare_os_error": ("raise OSError('only words')", "only words"),
    "stop_iteration": ("raise StopIteration", "StopIteration"),
    "end_of_file": ("raise EOFError('no more')", "EOFError: no more"),
    "broken_pipe": ("raise BrokenPipeError(32, 'Broken pipe')", "Broken pipe"),
    "odd_array": ("return OddArray()", "RuntimeError: no array today"),
    "surrogates": ("raise ValueError('\\udcff')", "ValueError"),
    "very_long": ("raise ValueError('x' * 10**6)", "ValueError: xxx"),
}

HEAD = """
import os
import h5py
import numpy as np
from numpy.lib import recfunctions as rfn


class Count(int):
    pass


class Name(str):
    pass


class OddInit(Exception):
    def __init__(self, one, two):
        super().__init__("of two")


class OddStr(Exception):
    def __str__(self):
        raise RuntimeError("no words")


class OddRepr:
    def __repr__(self):
        raise RuntimeError("no words")


class Group(BaseException):
    pass


class OddArray:
    def __array__(self, *args, **kwargs):
        raise RuntimeError("no array today")


def deeper(number):
    return deeper(number + 1)

"""


def functions_of(cases: dict[str, str]) -> str:
    """Return a module whose my_read runs the statement of a file's name."""
    lines = [HEAD]
    for name, statement in cases.items():
        lines.append(f"def case_{name}():\n    {statement}\n\n")
    lines.append("def my_read(path_sample):\n    name = os.path.basename(path_sample)\n")
    lines.append("    return globals()['case_' + name.removesuffix('.case')]()\n")
    return "\n".join(lines)


def convert_cases(cases: dict[str, str], folder: Path, *flags: str) -> tuple[Finished, Path]:
    source, output = folder / "source", folder / "OUT.h5"
    source.mkdir()
    for name in cases:
        (source / f"{name}.case").write_bytes(b"x")
    functions = write_functions(folder / "case_functions.py", functions_of(cases))
    flags = ("--ext=case", *read_with(functions), *flags)
    return run(command(source, output, *flags)), output


def value_of(expression: str) -> np.ndarray:
    namespace: dict[str, object] = {}
    exec(HEAD, namespace)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's about np.matrix
        return np.asarray(eval(expression, namespace))


@pytest.fixture(scope="module", params=["--workers=1", "--workers=2"])
def values(request, tmp_path_factory) -> Path:
    cases = {name: f"return {expression}" for name, expression in VALUES.items()}
    cases |= {name: f"return {expression}" for name, (expression, _) in TEXTS.items()}
    ended, output = convert_cases(cases, tmp_path_factory.mktemp("values"), request.param)
    assert failures(output) == {}, ended.err
    assert ended.status == 0, ended.err
    return output


@pytest.fixture(scope="module", params=["--workers=1", "--workers=2"])
def reasons(request, tmp_path_factory) -> dict[str, str]:
    cases = {name: f"return {expression}" for name, (expression, _) in REFUSED.items()}
    cases |= {name: statement for name, (statement, _) in RAISED.items()}
    cases["zz_good"] = "return 1"
    ended, output = convert_cases(cases, tmp_path_factory.mktemp("refused"), request.param)
    assert ended.status == 1, ended.err
    assert "Traceback" not in ended.err
    assert list(stored(output)) == ["zz_good.case"]
    return failures(output)


@pytest.mark.everyday(1)
def test_what_my_read_returns_comes_back_bit_for_bit(values):
    for name, value in VALUES.items():
        with case(name):
            expected = value_of(value)
            with h5py.File(values) as file:
                dataset = file[f"{name}.case"]
                assert dataset.dtype == expected.dtype
                assert dataset.shape == expected.shape
                found = dataset[()]
                assert "content" not in dataset.attrs
            if expected.dtype.names is None:
                assert_same(found, expected)
            else:
                np.testing.assert_array_equal(found, expected)
                assert np.asarray(found).dtype == expected.dtype


@pytest.mark.everyday(1)
@pytest.mark.parametrize("name", TEXTS)
def test_text_and_bytes_come_back_as_marked_uint8(name, values):
    expression, content = TEXTS[name]
    namespace: dict[str, object] = {}
    exec(HEAD, namespace)
    value = eval(expression, namespace)
    with h5py.File(values) as file:
        dataset = file[f"{name}.case"]
        assert dataset.dtype == np.uint8
        assert dataset.ndim == 1
        data = dataset[()].tobytes()
        assert dataset.attrs["content"] == content.encode()  # as h5py gives fixed-length text
    assert (data.decode() if content == "text" else data) == value


@pytest.mark.everyday(1)
def test_what_cannot_be_stored_is_a_failure_that_says_what_to_return(reasons):
    for name, (_, said) in REFUSED.items():
        with case(name):
            reason = reasons[f"{name}.case"]
            assert said in reason
            assert "\n" not in reason


@pytest.mark.everyday(1)
def test_whatever_my_read_raises_is_a_failure_with_its_words(reasons):
    for name, (_, said) in RAISED.items():
        with case(name):
            reason = reasons[f"{name}.case"]
            assert said in reason
            assert "\n" not in reason
            assert len(reason) < 600


BYTES = np.array([0, 255, 1, 7, 2, 0], np.uint8)
BOOL_DTYPES = {
    "plain": "?",
    "field": [("x", "<i4"), ("b", "?")],
    "nested": [("n", [("z", "<f8"), ("b", "?")]), ("y", "u1")],
    "subarray": [("b", "?", (2, 3)), ("x", ">i2")],
    "subarray of fields": [("n", [("b", "?", (2,)), ("z", "u1")], (3,))],
}


def bools_of(array: np.ndarray) -> list[np.ndarray]:
    """Return the bools of an array as it holds them, in bytes."""
    if array.dtype == bool:
        return [array.view(np.uint8)]
    return [raw for name in array.dtype.names or () for raw in bools_of(array[name])]


@pytest.mark.everyday(9)
@pytest.mark.parametrize("shape", [(), (4,), (2, 3)], ids=str)
@pytest.mark.parametrize("dtype", BOOL_DTYPES.values(), ids=BOOL_DTYPES)
def test_bools_are_stored_as_0_and_1(dtype, shape):
    array = np.ones(shape, dtype)
    for raw in bools_of(array):
        raw[...] = np.resize(BYTES[::-1], raw.shape)
    before = array.copy()
    storable = as_storable(array).array
    np.testing.assert_array_equal(storable, array)
    assert storable.dtype == array.dtype
    for raw, own in zip(bools_of(storable), bools_of(array), strict=True):
        assert np.array_equal(raw, own != 0)
    for raw, own in zip(bools_of(array), bools_of(before), strict=True):
        assert np.array_equal(raw, own)  # my_read may keep its array


@pytest.mark.parametrize("flag", ["--compression=none", "--compression=gzip", "--store=encoded"])
def test_an_image_of_1_bit_comes_out_as_0_and_1(flag, folder, output, convert):
    truth = np.arange(6000).reshape(60, 100) % 7 < 3
    PIL.Image.fromarray(truth).save(folder / "mask.png")
    convert(folder, output, "--ext=png", flag)
    array = H5Folder(output)["mask.png"]
    assert array.dtype == bool
    assert np.array_equal(array.view(np.uint8), truth)
    if flag != "--store=encoded":
        assert np.array_equal(stored(output)["mask.png"].view(np.uint8), truth)


UNUSUAL_DTYPES = {
    "titles": "[(('Title', 'a'), 'i4'), ('b', 'f8')]",
    "metadata": "np.dtype('i4', metadata={'unit': 'mm'})",
    "unpicklable": "np.dtype('i2', metadata={'f': lambda: 0})",
}


@pytest.mark.everyday(1)
@pytest.mark.parametrize("name", UNUSUAL_DTYPES)
def test_an_unusual_dtype_is_stored_or_refused_alone(name, tmp_path):
    expression = f"np.ones(3, np.dtype({UNUSUAL_DTYPES[name]}))"
    cases = {"good": "return 1", "unusual": f"return {expression}"}
    ended, output = convert_cases(cases, tmp_path, "--workers=2")
    assert "Traceback" not in ended.err, ended.err
    assert "Warning" not in ended.err
    found = stored(output)
    assert set(found) | set(failures(output)) == {"good.case", "unusual.case"}
    assert "good.case" in found
    if "unusual.case" in found:
        assert found["unusual.case"].dtype == value_of(expression).dtype
        np.testing.assert_array_equal(found["unusual.case"], value_of(expression))
    else:
        assert "return" in failures(output)["unusual.case"]


NO_EXCEPTIONS = {
    "generator_exit": ("raise GeneratorExit", "GeneratorExit"),
    "cancelled": ("raise __import__('asyncio').CancelledError('later')", "CancelledError: later"),
    "own": ("raise Group", "Group"),
}


@pytest.mark.everyday(1)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", NO_EXCEPTIONS)
def test_even_what_is_no_exception_fails_that_file_alone(name, workers, tmp_path):
    statement, words = NO_EXCEPTIONS[name]
    cases = {"bad": statement, "good": "return 1"}
    ended, output = convert_cases(cases, tmp_path, f"--workers={workers}")
    assert "Traceback" not in ended.err
    assert ended.status == 1
    assert list(stored(output)) == ["good.case"]
    assert words in failures(output)["bad.case"]


@pytest.mark.slow
def test_an_enumeration_and_plain_integers_do_not_take_each_others_type(tmp_path):
    cases = {
        "a_plain": "return np.array([0, 1], np.int64)",
        "b_enum": "return np.array([0, 1], h5py.enum_dtype({'OFF': 0, 'ON': 1}, basetype='i8'))",
        "c_plain": "return np.array([0, 1], np.int64)",
    }
    ended, output = convert_cases(cases, tmp_path, "--workers=1")
    assert ended.status == 0, ended.err
    with h5py.File(output) as file:
        assert h5py.check_enum_dtype(file["a_plain.case"].dtype) is None
        assert h5py.check_enum_dtype(file["c_plain.case"].dtype) is None


X87 = pytest.mark.skipif(np.finfo(np.longdouble).nmant != 63, reason="no numbers of 80 bits here")


@X87
def test_numbers_of_80_bits_are_refused(tmp_path):
    """6 of their 16 bytes carry nothing, and hold whatever memory held."""
    cases = {
        "real": "return np.longdouble([1.5, -2.25])",
        "complex": "return np.clongdouble([1.5, -2.25])",
        "swapped": "return np.longdouble([1.5]).astype('>g')",
        "field": "return np.ones(2, [('a', 'u1'), ('b', np.longdouble)])",
        "subarray": "return np.ones(2, [('a', 'u1'), ('b', np.longdouble, (3,))])",
        "good": "return np.longdouble([1.5, -2.25]).astype('float64')",
    }
    ended, output = convert_cases(cases, tmp_path, "--workers=1")
    assert ended.status == 1
    reasons = failures(output)
    assert "return .astype('complex128')" in reasons.pop("complex.case")
    assert len(reasons) == 4
    assert all("return .astype('float64')" in reason for reason in reasons.values())
    assert stored(output)["good.case"].tolist() == [1.5, -2.25]
