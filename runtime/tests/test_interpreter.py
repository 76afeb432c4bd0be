"""Interpreter and load_delegate, and processes that use them from threads and after a fork."""

import mmap
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from binaryvit_runtime import Interpreter, load_delegate
from binaryvit_runtime.files import map_model
from models import Tensor, options, pack, single_op
from test_fused_ops import attention


def quantizer():
    return single_op("LceQuantize", [Tensor((1, 2, 2, 40), "float32")], Tensor((1, 2, 2, 2), "int32"))


def pooling():
    custom_options = options(filter_height=2, filter_width=2, stride_height=2, stride_width=2, padding=1)
    inputs = [Tensor((1, 4, 4, 1), "int32")]
    return single_op("LceBMaxPool2d", inputs, Tensor((1, 2, 2, 1), "int32"), custom_options)


def test_predict_runs_image_after_image(tmp_path):
    images = np.random.default_rng(0).normal(size=(3, 2, 2, 40))
    path = tmp_path / "model.tflite"
    path.write_bytes(quantizer())
    for model in path, str(path), path.read_bytes():
        interpreter = Interpreter(model)
        assert interpreter.input_shapes == [(1, 2, 2, 40)] and interpreter.output_shapes == [(1, 2, 2, 2)]
        np.testing.assert_array_equal(interpreter.predict(images), pack(images))


def test_files_are_mapped_and_not_copied(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(quantizer())
    assert isinstance(map_model(path), mmap.mmap) and bytes(map_model(path)) == quantizer()
    (tmp_path / "empty.tflite").touch()
    with pytest.raises(ValueError, match="no TFLite flatbuffer: 0 bytes"):
        Interpreter(tmp_path / "empty.tflite")


def test_wrong_models_and_images_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.tflite"):
        Interpreter(tmp_path / "nowhere.tflite")
    with pytest.raises(ValueError, match="no TFLite flatbuffer: 5 bytes"):
        Interpreter(b"hello")
    with pytest.raises(ValueError, match="num_threads must be between 1 and 64"):
        Interpreter(quantizer(), num_threads=0)
    interpreter = Interpreter(quantizer())
    with pytest.raises(ValueError, match=r"takes arrays of shape \(2, 2, 40\). Received: \(2, 40\)"):
        interpreter.predict(np.zeros((1, 2, 40)))
    with pytest.raises(ValueError, match="batches of 1, 1 or more. Received: 0"):
        interpreter.predict(np.zeros((0, 2, 2, 40)))


def test_each_interpreter_needs_a_delegate_of_its_own():
    """Two interpreters could ask for the delegate's threads at the same time."""
    from ai_edge_litert.interpreter import Interpreter as LiteRT

    flatbuffer, (x,), expected = attention(0, 1, (8, 8), 1, 2, 32, True)
    delegate = load_delegate()
    first = LiteRT(model_content=flatbuffer, num_threads=1, experimental_delegates=[delegate])
    with pytest.raises((RuntimeError, ValueError), match="belongs to another interpreter; create one for each"):
        LiteRT(model_content=flatbuffer, num_threads=4, experimental_delegates=[delegate])
    first.allocate_tensors()
    first.set_tensor(0, x)
    first.invoke()
    output = first.get_tensor(first.get_output_details()[0]["index"])
    np.testing.assert_array_equal(output, expected)


def test_inputs_may_be_resized():
    from ai_edge_litert.interpreter import Interpreter as LiteRT

    interpreter = LiteRT(model_content=pooling(), experimental_delegates=[load_delegate()])
    for size in 4, 10, 6:
        x = np.random.default_rng(size).integers(-(2**31), 2**31, (2, size, size, 1), dtype=np.int32)
        interpreter.resize_tensor_input(0, x.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(0, x)
        interpreter.invoke()
        expected = np.bitwise_and.reduce(x.reshape(2, size // 2, 2, size // 2, 2, 1), axis=(2, 4))
        np.testing.assert_array_equal(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]), expected)


def test_the_interpreter_of_tensorflow_takes_the_delegate():
    tf = pytest.importorskip("tensorflow")
    interpreter = tf.lite.Interpreter(model_content=quantizer(), experimental_delegates=[load_delegate(2)])
    interpreter.allocate_tensors()
    x = np.random.default_rng(0).normal(size=(1, 2, 2, 40)).astype(np.float32)
    interpreter.set_tensor(0, x)
    interpreter.invoke()
    np.testing.assert_array_equal(interpreter.get_tensor(1), pack(x))


SETUP = """
import os, sys, threading, time
import numpy as np
sys.path.insert(0, {tests!r})
from models import Tensor, pack, single_op
from binaryvit_runtime import Interpreter

shape = (1, 64, 64, 256)
model = single_op("LceQuantize", [Tensor(shape, "float32")], Tensor((1, 64, 64, 8), "int32"))

def check(interpreter, seed, rounds=20):
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    expected = pack(x)
    for _ in range(rounds):
        assert (interpreter.predict(x) == expected).all()
"""


def process(code):
    """Runs `code` in a process of its own, which may fork and hang without harm to this one."""
    script = SETUP.format(tests=str(Path(__file__).parent)) + textwrap.dedent(code)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.split()


def test_interpreters_run_side_by_side():
    process("""
        interpreters = [Interpreter(model, num_threads=3) for _ in range(2)]
        errors = []
        def work(seed):
            try:
                check(interpreters[seed], seed)
            except BaseException as error:
                errors.append(error)
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert not errors, errors
    """)


def test_children_of_a_fork_run_the_parents_interpreter():
    process("""
        interpreter = Interpreter(model, num_threads=3)
        check(interpreter, 0)
        for _ in range(2):  # and grandchildren
            child = os.fork()
            if child:
                assert os.waitpid(child, 0)[1] == 0
                check(interpreter, 1)
                os._exit(0)
            check(interpreter, 2)
    """)


def test_idle_threads_sleep():
    states = process("""
        interpreter = Interpreter(model, num_threads=3)
        check(interpreter, 0)
        time.sleep(0.5)
        own = threading.get_native_id()
        for thread in os.listdir("/proc/self/task"):
            if int(thread) != own:
                print(open(f"/proc/self/task/{thread}/stat").read().rsplit(")", 1)[1].split()[0])
    """)
    assert len(states) >= 2 and set(states) == {"S"}


def test_threads_end_with_their_interpreter():
    before, during, after = process("""
        count = lambda: len(os.listdir("/proc/self/task"))
        import gc
        Interpreter(model, num_threads=1).predict(np.zeros(shape))
        print(count())
        interpreter = Interpreter(model, num_threads=5)
        check(interpreter, 0, 1)
        print(count())
        del interpreter
        gc.collect()
        time.sleep(0.2)
        print(count())
    """)
    assert int(during) >= int(before) + 4 and int(after) <= int(during) - 4
