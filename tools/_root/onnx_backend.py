"""Celosia as a backend in the sense of :mod:`onnx.backend`: ``celosia.onnx_backend.prepare(model).run(inputs)``.

The engine is simulated by the golden executor unless ``on`` says otherwise. What the engine does not run, ONNX Runtime does;
:attr:`CelosiaBackendRep.report` tells which nodes that were.
"""

import onnx
import onnx.defs
from onnx.backend.base import Backend, BackendRep, Device, DeviceType, namedtupledict

from celosia.tools.errors import BadModel
from celosia.tools.session import InferenceSession, check_feed

__all__ = ["CelosiaBackend", "CelosiaBackendRep", "is_compatible", "prepare", "run_model", "run_node", "supports_device"]

NO_KERNEL = "Could not find an implementation for"


class CelosiaBackendRep(BackendRep):
    """A model that is ready to run.

    Members
    -------
    session : InferenceSession
    report : Report
        Of the last run: layer by layer where it ran.
    """

    def __init__(self, session):
        self.session = session

    @property
    def report(self):
        return self.session.report

    def run(self, inputs, **kwargs):
        """Run the model on a dict, a sequence in the order of the graph inputs, or the only input; return a named tuple."""
        names = [name for name, _, _ in self.session.model.inputs]
        if not isinstance(inputs, dict):
            inputs = dict(zip(names, inputs if isinstance(inputs, (list, tuple)) else [inputs], strict=True))
        arrays, count = check_feed(self.session.model, inputs)
        values = self.session.compute(arrays, count)
        outputs = [name for name, _, _ in self.session.model.outputs]
        return namedtupledict("Outputs", outputs)(*(_whole(values[name], count) for name in outputs))


def _whole(array, count):
    """Return ``[inferences, batch, …]`` as the model has it."""
    return array.reshape(array.shape[1:]) if count == 1 else array.reshape(-1, *array.shape[2:])


class CelosiaBackend(Backend):
    """The engine with ONNX Runtime at its side."""

    @classmethod
    def is_compatible(cls, model, device="CPU", **kwargs):
        """Return whether the model can be compiled, or runs on the host."""
        try:
            cls.prepare(model, device, **kwargs)
        except BadModel:
            return False
        return True

    @classmethod
    def prepare(cls, model, device="CPU", *, engine="mac256", on="golden", **kwargs):
        """Compile a model.

        Parameters
        ----------
        model : onnx.ModelProto
        device : str
            Only ``"CPU"``: the engine is simulated there.
        engine, on : str
            As for :class:`celosia.InferenceSession`.

        Returns
        -------
        CelosiaBackendRep

        Raises
        ------
        CelosiaError
        """
        if not cls.supports_device(device):
            raise ValueError(f"device must be 'CPU', not {device!r}")
        super().prepare(model, device)
        try:
            return CelosiaBackendRep(InferenceSession(model.SerializeToString(), engine, on))
        except BadModel as error:
            older = _older(model) if NO_KERNEL in str(error) else None
            if older is None:
                raise
        return CelosiaBackendRep(InferenceSession(older.SerializeToString(), engine, on))

    @classmethod
    def run_node(cls, node, inputs, device="CPU", outputs_info=None, **kwargs):
        """Run one operator; ``kwargs`` may hold ``opset_version``."""
        super().run_node(node, inputs, device, outputs_info, **kwargs)
        arrays = inputs if isinstance(inputs, (list, tuple)) else [inputs]
        names = [name for name in node.input if name]
        values = [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in zip(names, arrays, strict=True)
        ]
        graph = onnx.helper.make_graph([node], "node", values, [onnx.ValueInfoProto(name=name) for name in node.output if name])
        version = kwargs.pop("opset_version", onnx.defs.onnx_opset_version())
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid(node.domain, version)])
        return cls.prepare(onnx.shape_inference.infer_shapes(model), device, **kwargs).run(list(arrays))

    @classmethod
    def supports_device(cls, device):
        return Device(device).type == DeviceType.CPU


def _older(model):
    """Return the model with the newest operator set of which ONNX Runtime has all nodes and whose definitions take the same ones.

    New operator sets mostly add types. Which of them ONNX Runtime implements, it does not say before it is asked; so the set before
    the newest definition in use is tried, until there is no older one that differs by types alone.
    """
    older = onnx.ModelProto()
    older.CopyFrom(model)
    (entry,) = [entry for entry in older.opset_import if entry.domain in ("", "ai.onnx")] or [None]
    return older if entry is not None and _step_back(older, entry) else None


def _step_back(model, entry):
    import onnxruntime

    names = {node.op_type for node in model.graph.node if node.domain in ("", "ai.onnx")}
    while True:
        current = {name: onnx.defs.get_schema(name, max_inclusive_version=entry.version) for name in names}
        entry.version = max(schema.since_version for schema in current.values()) - 1
        for name, schema in current.items():
            if entry.version < 1 or not onnx.defs.has(name, max_inclusive_version=entry.version):
                return False
            before = onnx.defs.get_schema(name, max_inclusive_version=entry.version)
            if not all(_has_attribute(before, node) for node in model.graph.node if node.op_type == name):
                return False
            assert schema.name == before.name
        try:
            onnx.checker.check_model(model)
            onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
            return True
        except Exception:
            continue


def _has_attribute(schema, node):
    return all(attribute.name in schema.attributes for attribute in node.attribute)


is_compatible = CelosiaBackend.is_compatible
prepare = CelosiaBackend.prepare
run_model = CelosiaBackend.run_model
run_node = CelosiaBackend.run_node
supports_device = CelosiaBackend.supports_device
