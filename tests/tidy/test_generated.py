"""What is generated says what its source says."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from sllm_store.proto import storage_pb2

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "src/sllm_store/proto/storage.proto"
ADVICE = "storage.proto changed: run `make proto` and commit what it writes"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> descriptor_pb2.FileDescriptorProto:
    """storage.proto as protoc understands it now."""
    protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools is not installed")
    output = tmp_path_factory.mktemp("proto") / "descriptors"
    source = PROTO.relative_to(ROOT / "src").as_posix()
    arguments = ["protoc", f"-I{ROOT / 'src'}", f"--descriptor_set_out={output}", source]
    assert protoc.main(arguments) == 0
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes()).file
    return file


def test_the_protocol_in_python_is_the_one_in_storage_proto(
    compiled: descriptor_pb2.FileDescriptorProto,
) -> None:
    generated = descriptor_pb2.FileDescriptorProto()
    storage_pb2.DESCRIPTOR.CopyToProto(generated)
    assert _without_json_names(compiled) == _without_json_names(generated), ADVICE


def test_the_stubs_and_the_services_name_every_message_and_method(
    compiled: descriptor_pb2.FileDescriptorProto,
) -> None:
    stub = PROTO.with_name("storage_pb2.pyi").read_text()
    messages = {message.name for message in compiled.message_type}
    enums = {enum.name for enum in compiled.enum_type}
    assert set(re.findall(r"^class (\w+)\(", stub, re.MULTILINE)) == messages | enums, ADVICE
    services = PROTO.with_name("storage_pb2_grpc.py").read_text()
    methods = {
        f"/{compiled.package}.{service.name}/{method.name}"
        for service in compiled.service
        for method in service.method
    }
    assert set(re.findall(r"'(/[\w.]+/\w+)'", services)) == methods, ADVICE


def test_the_runtimes_asked_for_accept_the_generated_code() -> None:
    messages = PROTO.with_name("storage_pb2.py").read_text()
    services = PROTO.with_name("storage_pb2_grpc.py").read_text()
    made_for = {
        "protobuf": re.findall(r"^# Protobuf Python Version: ([\d.]+)$", messages, re.MULTILINE),
        "grpcio": re.findall(r"^GRPC_GENERATED_VERSION = '([\d.]+)'$", services, re.MULTILINE),
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for package, (version,) in made_for.items():
        assert f"{package}>={version}" in project["dependencies"], "say so in pyproject.toml"


def test_the_ptx_is_what_the_kernel_was_compiled_to() -> None:
    source = ROOT / "csrc/codec/decode_segments.cu"
    first_line = source.with_suffix(".ptx").read_text().partition("\n")[0]
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert first_line == f"// {source.name} sha256 {digest}", "run `make ptx` and commit the PTX"


def _without_json_names(
    file: descriptor_pb2.FileDescriptorProto,
) -> descriptor_pb2.FileDescriptorProto:
    """Leave out what one way of asking protoc writes and the other does not."""
    copy = descriptor_pb2.FileDescriptorProto.FromString(file.SerializeToString())
    messages = list(copy.message_type)
    while messages:
        message = messages.pop()
        messages.extend(message.nested_type)
        for field in message.field:
            field.ClearField("json_name")
    return copy
