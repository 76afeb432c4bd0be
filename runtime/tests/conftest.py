import platform

import pytest
from hypothesis import HealthCheck, settings

# The kernel set is the same for all examples of a test, so a fixture may set it.
settings.register_profile("runtime", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("runtime")

SETS = {"x86_64": ["scalar", "sse", "avx2", "avx512"], "aarch64": ["scalar", "neon", "dotprod"]}


def available_kernels():
    """Returns the kernel sets that this processor runs, as the delegate says."""
    from binaryvit_runtime import load_delegate

    names = []
    with pytest.MonkeyPatch.context() as patch:
        for name in SETS.get(platform.machine(), ["scalar"]):
            patch.setenv("BINARYVIT_KERNELS", name)
            try:
                load_delegate()
            except ValueError:
                continue
            names.append(name)
    return names


def pytest_generate_tests(metafunc):
    if "kernels" in metafunc.fixturenames:
        metafunc.parametrize("kernels", available_kernels(), indirect=True)


@pytest.fixture
def kernels(request, monkeypatch):
    """Runs the test with each kernel set."""
    monkeypatch.setenv("BINARYVIT_KERNELS", request.param)
    return request.param
