"""Where the tests of a module are: beside it in tests/, or in a file that this page names."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"sllm", "sllm_store"}

# A module without a test file of its own, and the file whose tests go through all of it. The
# reason is the same for each: it is one step of what that file tests from outside, and has no
# user but that. A module that gets a second user gets tests of its own, and leaves this list.
TESTED_THROUGH = {
    "sllm/runtime/weights/free_memory.py": "runtime/weights/test_opening.py",
    "sllm/backends/engine.py": "backends/test_local.py",
    "sllm/backends/forecasting.py": "backends/test_local.py",
    "sllm/cli/answers.py": "cli/test_run.py",
    "sllm/cli/edge.py": "cli/test_root.py",
    "sllm/cli/finding.py": "cli/test_server.py",
    "sllm/cli/server_client.py": "cli/test_run.py",
    "sllm/cli/slash.py": "cli/test_chat.py",
    "sllm/cli/options.py": "cli/test_pull.py",
    "sllm/core/errors.py": "runtime/config/test_families.py",
    "sllm/core/requests.py": "runtime/test_sampler.py",
    "sllm/runtime/current_device.py": "runtime/engine/test_token_engine.py",
    "sllm/runtime/drawing.py": "runtime/test_sampler.py",
    "sllm/core/token_bytes.py": "core/test_detokenizer.py",
    "sllm/library/manifest.py": "library/test_models.py",
    "sllm/library/model.py": "library/test_models.py",
    "sllm/library/origins.py": "library/test_models.py",
    "sllm/gateway/access.py": "gateway/test_app.py",
    "sllm/gateway/asked.py": "gateway/openai/test_chat.py",
    "sllm/gateway/asking.py": "gateway/openai/test_chat.py",
    "sllm/gateway/backing.py": "gateway/test_serve.py",
    "sllm/gateway/counting.py": "gateway/test_app.py",
    "sllm/gateway/embedding.py": "gateway/openai/test_embeddings.py",
    "sllm/gateway/failures.py": "gateway/test_app.py",
    "sllm/gateway/listening.py": "gateway/test_serve.py",
    "sllm/gateway/metrics.py": "gateway/test_app.py",
    "sllm/gateway/ollama/answers.py": "gateway/test_declared.py",
    "sllm/gateway/openai/answers.py": "gateway/test_declared.py",
    "sllm/gateway/ollama/bodies.py": "gateway/ollama/test_generation.py",
    "sllm/gateway/openai/bodies.py": "gateway/openai/test_chat.py",
    "sllm/gateway/openai/response_bodies.py": "gateway/openai/test_responses.py",
    "sllm/gateway/openai/response_items.py": "gateway/openai/test_responses.py",
    "sllm/gateway/preparation.py": "gateway/openai/test_chat.py",
    "sllm/gateway/said.py": "gateway/openai/test_responses.py",
    "sllm/gateway/service.py": "gateway/test_app.py",
    "sllm/gateway/streams.py": "gateway/openai/test_chat.py",
    "sllm/runtime/config/fields.py": "runtime/config/test_families.py",
    "sllm/runtime/config/model.py": "runtime/config/test_families.py",
    "sllm/runtime/engine/active.py": "runtime/engine/test_token_engine.py",
    "sllm/runtime/engine/embedding.py": "runtime/engine/test_token_engine.py",
    "sllm/runtime/engine/passes.py": "runtime/engine/test_token_engine.py",
    "sllm/runtime/kernels/device/chain_links.py": "runtime/kernels/test_chains.py",
    "sllm/runtime/kernels/device/block_planes.py": "runtime/kernels/test_block_laying.py",
    "sllm/runtime/kernels/device/fixed_columns.py": "runtime/kernels/test_fixed_columns.py",
    "sllm/runtime/kernels/device/gating.py": "runtime/kernels/test_between.py",
    "sllm/runtime/kernels/device/head_places.py": "runtime/kernels/test_between.py",
    "sllm/runtime/kernels/device/norms.py": "runtime/kernels/test_between.py",
    "sllm/runtime/kernels/nibble_planes.py": "runtime/kernels/test_fixed_products.py",
    "sllm/runtime/kernels/plane_maps.py": "runtime/kernels/test_token_products.py",
    "sllm/runtime/kernels/operands.py": "runtime/layers/test_rope.py",
    "sllm/runtime/kernels/device/peaks.py": "runtime/kernels/test_peaks.py",
    "sllm/runtime/kernels/device/draws.py": "runtime/kernels/test_draws.py",
    "sllm/runtime/kernels/device/rotations.py": "runtime/kernels/test_rotations.py",
    "sllm/runtime/kernels/device/planar_numbers.py": "runtime/kernels/test_products.py",
    "sllm/runtime/kernels/device/planar_gemm.py": "runtime/kernels/test_products.py",
    "sllm/runtime/kernels/device/dense_gemv.py": "runtime/kernels/test_products.py",
    "sllm/runtime/kernels/device/paged_attention.py": "runtime/kernels/test_attention.py",
    "sllm/runtime/kernels/device/numerals.py": "runtime/kernels/test_products.py",
    "sllm/runtime/kernels/device/partial_sums.py": "runtime/kernels/test_products.py",
    "sllm/runtime/kernels/device/planar_gemv.py": "runtime/kernels/test_products.py",
    "sllm/runtime/kernels/device/fragments.py": "runtime/kernels/test_column_products.py",
    "sllm/runtime/kernels/device/token_columns.py": "runtime/kernels/test_column_products.py",
    "sllm/runtime/kernels/device/planar_mma.py": "runtime/kernels/test_chosen_nibbles.py",
    "sllm/runtime/kernels/device/planar_fixed.py": "runtime/kernels/test_fixed_products.py",
    "sllm/runtime/kernels/shares.py": "runtime/kernels/test_products.py",
    "sllm/runtime/kernels/device/chosen_nibbles.py": "runtime/kernels/test_chosen_nibbles.py",
    "sllm/runtime/kernels/device/expert_books.py": "runtime/kernels/test_expert_books.py",
    "sllm/runtime/kernels/device/chosen_experts.py": "runtime/kernels/test_expert_products.py",
    "sllm/runtime/layers/attention.py": "runtime/test_decoder.py",
    "sllm/runtime/layers/delta.py": "runtime/test_decoder.py",
    "sllm/runtime/layers/experts.py": "runtime/test_decoder.py",
    "sllm/runtime/layers/host_attention.py": "runtime/test_decoder.py",
    "sllm/runtime/layers/kernel_operations.py": "runtime/test_decoder.py",
    "sllm/runtime/layers/mlp.py": "runtime/test_decoder.py",
    "sllm/runtime/layers/norm.py": "runtime/test_decoder.py",
    "sllm/runtime/layers/operations.py": "runtime/test_decoder.py",
    "sllm/runtime/layers/paged_steps.py": "runtime/test_decoder.py",
    "sllm/runtime/layers/recording.py": "runtime/layers/test_recorded_steps.py",
    "sllm/runtime/layers/passage.py": "runtime/test_decoder.py",
    "sllm/runtime/quant/blockwise.py": "runtime/quant/test_dense.py",
    "sllm/runtime/quant/matrix.py": "runtime/quant/test_dense.py",
    "sllm/runtime/weights/device_experts.py": "runtime/weights/test_device_placement.py",
    "sllm/runtime/weights/device_layers.py": "runtime/weights/test_device_placement.py",
    "sllm/runtime/weights/disk_experts.py": "runtime/weights/test_model_experts.py",
    "sllm/runtime/weights/expected.py": "runtime/weights/test_assembly.py",
    "sllm/runtime/weights/lane.py": "runtime/weights/test_device_placement.py",
    "sllm/runtime/weights/names.py": "runtime/weights/test_resident.py",
    "sllm/runtime/weights/placement.py": "runtime/weights/test_stored.py",
    "sllm/runtime/weights/source.py": "runtime/weights/test_resident.py",
    "sllm/runtime/weights/views.py": "runtime/weights/test_stored.py",
    "sllm/text/files.py": "text/test_model.py",
    "sllm/text/syntax.py": "text/test_parser.py",
    "sllm_store/answers.py": "test_client.py",
    "sllm_store/checkpoint/checksum.py": "checkpoint/test_writer.py",
    "sllm_store/checkpoint/extents.py": "checkpoint/test_indexed.py",
    "sllm_store/checkpoint/fields.py": "checkpoint/test_indexed.py",
    "sllm_store/checkpoint/files.py": "checkpoint/test_indexed.py",
    "sllm_store/checkpoint/gguf_header.py": "checkpoint/test_gguf.py",
    "sllm_store/checkpoint/index.py": "checkpoint/test_indexed.py",
    "sllm_store/checkpoint/loaded.py": "test_stream.py",
    "sllm_store/checkpoint/partition_writer.py": "checkpoint/test_writer.py",
    "sllm_store/convert/gguf_architecture.py": "convert/test_importer.py",
    "sllm_store/convert/gguf_import.py": "convert/test_importer.py",
    "sllm_store/convert/gguf_models.py": "convert/test_gguf_tokenizer.py",
    "sllm_store/convert/gguf_pre_tokenizer.py": "convert/test_gguf_tokenizer.py",
    "sllm_store/convert/gguf_vocabulary.py": "convert/test_gguf_tokenizer.py",
    "sllm_store/local_connection.py": "server/test_local_socket.py",
    "sllm_store/rpc_errors.py": "test_client.py",
    "sllm_store/server/catalog.py": "server/test_service.py",
    "sllm_store/server/edge.py": "server/test_serve.py",
    "sllm_store/server/engine.py": "server/test_service.py",
    "sllm_store/server/metrics.py": "server/test_serve.py",
    "sllm_store/server/sessions.py": "server/test_service.py",
    "sllm_store/server/status.py": "server/test_serve.py",
    "sllm_store/server/structured_log.py": "server/test_serve.py",
    "sllm_store/tiers/held.py": "server/test_shared.py",
    "sllm_store/tiers/watching.py": "test_stream.py",
    "sllm_store/torch/dtypes.py": "torch/test_views.py",
    "sllm_store/transformers/fill.py": "transformers/test_load.py",
    "sllm_store/transformers/internals.py": "transformers/test_load.py",
    "sllm_store/transformers/module_sizes.py": "transformers/test_save.py",
}


@pytest.fixture(scope="module")
def modules(tracked: list[Path]) -> set[str]:
    """Every module of src/ that holds code, by its path there."""
    return {
        path.relative_to("src").as_posix()
        for path in tracked
        if path.suffix == ".py"
        and path.is_relative_to("src")
        and path.name != "__init__.py"
        and "_pb2" not in path.name
    }


def test_tests_mirror_sources(tracked: list[Path]) -> None:
    """tests/sllm_store/tiers/test_host.py is where the tests of sllm_store.tiers.host are."""
    for path in tracked:
        if path.parts[0] == "tests" and path.parts[1] in PACKAGES and path.match("test_*.py"):
            mirrored = path.relative_to("tests").with_name(path.name.removeprefix("test_"))
            places = (ROOT / "src" / mirrored, ROOT / "src" / mirrored.with_suffix(""))
            assert any(place.exists() for place in places), f"{path} mirrors nothing in src/"


def test_every_module_is_tested_somewhere(modules: set[str]) -> None:
    untested = {name for name in modules if not _own_test(name).is_file()}
    missing = untested - TESTED_THROUGH.keys()
    assert not missing, "write their tests; what only serves another module may be listed above"
    stale = TESTED_THROUGH.keys() - untested
    assert not stale, "these have tests of their own now, or are gone: remove them from the list"


def test_the_tests_that_stand_for_others_exist() -> None:
    for name, tests in TESTED_THROUGH.items():
        package = name.split("/", maxsplit=1)[0]
        assert (ROOT / "tests" / package / tests).is_file(), f"{name}: there is no {tests}"


def _own_test(module: str) -> Path:
    path = ROOT / "tests" / module
    return path.with_name(f"test_{path.name}")
