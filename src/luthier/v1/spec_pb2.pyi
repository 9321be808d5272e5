import datetime

from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobSpec(_message.Message):
    __slots__ = ("model", "data", "method", "objective", "adapter", "training", "resources", "scheduling", "faults", "output", "evaluation", "env", "secret_refs")
    class EnvEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    SCHEDULING_FIELD_NUMBER: _ClassVar[int]
    FAULTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    ENV_FIELD_NUMBER: _ClassVar[int]
    SECRET_REFS_FIELD_NUMBER: _ClassVar[int]
    model: Model
    data: Data
    method: Method
    objective: Objective
    adapter: Adapter
    training: Training
    resources: Resources
    scheduling: Scheduling
    faults: Faults
    output: Output
    evaluation: Evaluation
    env: _containers.ScalarMap[str, str]
    secret_refs: _containers.RepeatedCompositeFieldContainer[SecretRef]
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., data: _Optional[_Union[Data, _Mapping]] = ..., method: _Optional[_Union[Method, _Mapping]] = ..., objective: _Optional[_Union[Objective, _Mapping]] = ..., adapter: _Optional[_Union[Adapter, _Mapping]] = ..., training: _Optional[_Union[Training, _Mapping]] = ..., resources: _Optional[_Union[Resources, _Mapping]] = ..., scheduling: _Optional[_Union[Scheduling, _Mapping]] = ..., faults: _Optional[_Union[Faults, _Mapping]] = ..., output: _Optional[_Union[Output, _Mapping]] = ..., evaluation: _Optional[_Union[Evaluation, _Mapping]] = ..., env: _Optional[_Mapping[str, str]] = ..., secret_refs: _Optional[_Iterable[_Union[SecretRef, _Mapping]]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("uri", "tokenizer_uri", "roles")
    class RolesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    URI_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_URI_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    uri: str
    tokenizer_uri: str
    roles: _containers.ScalarMap[str, str]
    def __init__(self, uri: _Optional[str] = ..., tokenizer_uri: _Optional[str] = ..., roles: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Data(_message.Message):
    __slots__ = ("sources", "validation", "validation_fraction", "columns", "on_bad_row", "bad_row_threshold", "overlong", "system_prompt", "recipes")
    class BadRowPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        BAD_ROW_POLICY_UNSPECIFIED: _ClassVar[Data.BadRowPolicy]
        BAD_ROW_POLICY_FAIL: _ClassVar[Data.BadRowPolicy]
        BAD_ROW_POLICY_SKIP: _ClassVar[Data.BadRowPolicy]
    BAD_ROW_POLICY_UNSPECIFIED: Data.BadRowPolicy
    BAD_ROW_POLICY_FAIL: Data.BadRowPolicy
    BAD_ROW_POLICY_SKIP: Data.BadRowPolicy
    class LengthPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        LENGTH_POLICY_UNSPECIFIED: _ClassVar[Data.LengthPolicy]
        LENGTH_POLICY_TRUNCATE_RIGHT: _ClassVar[Data.LengthPolicy]
        LENGTH_POLICY_TRUNCATE_LEFT: _ClassVar[Data.LengthPolicy]
        LENGTH_POLICY_DROP: _ClassVar[Data.LengthPolicy]
        LENGTH_POLICY_SPLIT: _ClassVar[Data.LengthPolicy]
        LENGTH_POLICY_AUTO: _ClassVar[Data.LengthPolicy]
    LENGTH_POLICY_UNSPECIFIED: Data.LengthPolicy
    LENGTH_POLICY_TRUNCATE_RIGHT: Data.LengthPolicy
    LENGTH_POLICY_TRUNCATE_LEFT: Data.LengthPolicy
    LENGTH_POLICY_DROP: Data.LengthPolicy
    LENGTH_POLICY_SPLIT: Data.LengthPolicy
    LENGTH_POLICY_AUTO: Data.LengthPolicy
    class ColumnsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_FRACTION_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    ON_BAD_ROW_FIELD_NUMBER: _ClassVar[int]
    BAD_ROW_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    OVERLONG_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_PROMPT_FIELD_NUMBER: _ClassVar[int]
    RECIPES_FIELD_NUMBER: _ClassVar[int]
    sources: _containers.RepeatedCompositeFieldContainer[DataSource]
    validation: _containers.RepeatedCompositeFieldContainer[DataSource]
    validation_fraction: float
    columns: _containers.ScalarMap[str, str]
    on_bad_row: Data.BadRowPolicy
    bad_row_threshold: float
    overlong: Data.LengthPolicy
    system_prompt: str
    recipes: _containers.RepeatedCompositeFieldContainer[DataRecipe]
    def __init__(self, sources: _Optional[_Iterable[_Union[DataSource, _Mapping]]] = ..., validation: _Optional[_Iterable[_Union[DataSource, _Mapping]]] = ..., validation_fraction: _Optional[float] = ..., columns: _Optional[_Mapping[str, str]] = ..., on_bad_row: _Optional[_Union[Data.BadRowPolicy, str]] = ..., bad_row_threshold: _Optional[float] = ..., overlong: _Optional[_Union[Data.LengthPolicy, str]] = ..., system_prompt: _Optional[str] = ..., recipes: _Optional[_Iterable[_Union[DataRecipe, _Mapping]]] = ...) -> None: ...

class DataSource(_message.Message):
    __slots__ = ("uri", "format", "shape", "weight", "max_rows", "columns")
    class ColumnsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    URI_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    uri: str
    format: str
    shape: str
    weight: float
    max_rows: int
    columns: _containers.ScalarMap[str, str]
    def __init__(self, uri: _Optional[str] = ..., format: _Optional[str] = ..., shape: _Optional[str] = ..., weight: _Optional[float] = ..., max_rows: _Optional[int] = ..., columns: _Optional[_Mapping[str, str]] = ...) -> None: ...

class DataRecipe(_message.Message):
    __slots__ = ("name", "params")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    name: str
    params: _struct_pb2.Struct
    def __init__(self, name: _Optional[str] = ..., params: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class Method(_message.Message):
    __slots__ = ("name", "version", "params")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    params: _struct_pb2.Struct
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., params: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class Objective(_message.Message):
    __slots__ = ("name", "params")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    name: str
    params: _struct_pb2.Struct
    def __init__(self, name: _Optional[str] = ..., params: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class Adapter(_message.Message):
    __slots__ = ("name", "params")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    name: str
    params: _struct_pb2.Struct
    def __init__(self, name: _Optional[str] = ..., params: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class Training(_message.Message):
    __slots__ = ("batch_size", "micro_batch_size", "max_length", "packing", "epochs", "steps", "tokens", "optimizer", "schedule", "max_grad_norm", "seed", "precision", "zero_stage", "engine", "gradient_checkpointing", "log_every_steps", "threads_per_rank")
    class Packing(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        PACKING_UNSPECIFIED: _ClassVar[Training.Packing]
        PACKING_AUTO: _ClassVar[Training.Packing]
        PACKING_OFF: _ClassVar[Training.Packing]
        PACKING_LENGTH_GROUPED: _ClassVar[Training.Packing]
        PACKING_PACKED: _ClassVar[Training.Packing]
    PACKING_UNSPECIFIED: Training.Packing
    PACKING_AUTO: Training.Packing
    PACKING_OFF: Training.Packing
    PACKING_LENGTH_GROUPED: Training.Packing
    PACKING_PACKED: Training.Packing
    class Precision(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        PRECISION_UNSPECIFIED: _ClassVar[Training.Precision]
        PRECISION_AUTO: _ClassVar[Training.Precision]
        PRECISION_FP32: _ClassVar[Training.Precision]
        PRECISION_BF16: _ClassVar[Training.Precision]
    PRECISION_UNSPECIFIED: Training.Precision
    PRECISION_AUTO: Training.Precision
    PRECISION_FP32: Training.Precision
    PRECISION_BF16: Training.Precision
    class EngineKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ENGINE_KIND_UNSPECIFIED: _ClassVar[Training.EngineKind]
        ENGINE_KIND_AUTO: _ClassVar[Training.EngineKind]
        ENGINE_KIND_DEEPSPEED: _ClassVar[Training.EngineKind]
        ENGINE_KIND_PLAIN: _ClassVar[Training.EngineKind]
    ENGINE_KIND_UNSPECIFIED: Training.EngineKind
    ENGINE_KIND_AUTO: Training.EngineKind
    ENGINE_KIND_DEEPSPEED: Training.EngineKind
    ENGINE_KIND_PLAIN: Training.EngineKind
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    PACKING_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    MAX_GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    ZERO_STAGE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_CHECKPOINTING_FIELD_NUMBER: _ClassVar[int]
    LOG_EVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    THREADS_PER_RANK_FIELD_NUMBER: _ClassVar[int]
    batch_size: int
    micro_batch_size: int
    max_length: int
    packing: Training.Packing
    epochs: float
    steps: int
    tokens: int
    optimizer: Optimizer
    schedule: Schedule
    max_grad_norm: float
    seed: int
    precision: Training.Precision
    zero_stage: int
    engine: Training.EngineKind
    gradient_checkpointing: bool
    log_every_steps: int
    threads_per_rank: int
    def __init__(self, batch_size: _Optional[int] = ..., micro_batch_size: _Optional[int] = ..., max_length: _Optional[int] = ..., packing: _Optional[_Union[Training.Packing, str]] = ..., epochs: _Optional[float] = ..., steps: _Optional[int] = ..., tokens: _Optional[int] = ..., optimizer: _Optional[_Union[Optimizer, _Mapping]] = ..., schedule: _Optional[_Union[Schedule, _Mapping]] = ..., max_grad_norm: _Optional[float] = ..., seed: _Optional[int] = ..., precision: _Optional[_Union[Training.Precision, str]] = ..., zero_stage: _Optional[int] = ..., engine: _Optional[_Union[Training.EngineKind, str]] = ..., gradient_checkpointing: _Optional[bool] = ..., log_every_steps: _Optional[int] = ..., threads_per_rank: _Optional[int] = ...) -> None: ...

class Optimizer(_message.Message):
    __slots__ = ("name", "learning_rate", "beta1", "beta2", "epsilon", "weight_decay")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    BETA1_FIELD_NUMBER: _ClassVar[int]
    BETA2_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    name: str
    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    def __init__(self, name: _Optional[str] = ..., learning_rate: _Optional[float] = ..., beta1: _Optional[float] = ..., beta2: _Optional[float] = ..., epsilon: _Optional[float] = ..., weight_decay: _Optional[float] = ...) -> None: ...

class Schedule(_message.Message):
    __slots__ = ("name", "warmup_steps", "final_ratio")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WARMUP_STEPS_FIELD_NUMBER: _ClassVar[int]
    FINAL_RATIO_FIELD_NUMBER: _ClassVar[int]
    name: str
    warmup_steps: int
    final_ratio: float
    def __init__(self, name: _Optional[str] = ..., warmup_steps: _Optional[int] = ..., final_ratio: _Optional[float] = ...) -> None: ...

class Resources(_message.Message):
    __slots__ = ("nodes", "processes_per_node", "accelerator", "cpu", "memory_bytes", "node_profile")
    class Accelerator(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ACCELERATOR_UNSPECIFIED: _ClassVar[Resources.Accelerator]
        ACCELERATOR_AUTO: _ClassVar[Resources.Accelerator]
        ACCELERATOR_CPU: _ClassVar[Resources.Accelerator]
        ACCELERATOR_CUDA: _ClassVar[Resources.Accelerator]
    ACCELERATOR_UNSPECIFIED: Resources.Accelerator
    ACCELERATOR_AUTO: Resources.Accelerator
    ACCELERATOR_CPU: Resources.Accelerator
    ACCELERATOR_CUDA: Resources.Accelerator
    NODES_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_PER_NODE_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    CPU_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    NODE_PROFILE_FIELD_NUMBER: _ClassVar[int]
    nodes: NodeRange
    processes_per_node: int
    accelerator: Resources.Accelerator
    cpu: float
    memory_bytes: int
    node_profile: str
    def __init__(self, nodes: _Optional[_Union[NodeRange, _Mapping]] = ..., processes_per_node: _Optional[int] = ..., accelerator: _Optional[_Union[Resources.Accelerator, str]] = ..., cpu: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., node_profile: _Optional[str] = ...) -> None: ...

class NodeRange(_message.Message):
    __slots__ = ("min", "max")
    MIN_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    min: int
    max: int
    def __init__(self, min: _Optional[int] = ..., max: _Optional[int] = ...) -> None: ...

class Scheduling(_message.Message):
    __slots__ = ("queue", "priority", "deadline")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    queue: str
    priority: int
    deadline: _duration_pb2.Duration
    def __init__(self, queue: _Optional[str] = ..., priority: _Optional[int] = ..., deadline: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Faults(_message.Message):
    __slots__ = ("infra_retries", "memory_retries", "checkpoint", "hang_timeout", "non_finite")
    class NonFinitePolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        NON_FINITE_POLICY_UNSPECIFIED: _ClassVar[Faults.NonFinitePolicy]
        NON_FINITE_POLICY_SKIP: _ClassVar[Faults.NonFinitePolicy]
        NON_FINITE_POLICY_REWIND: _ClassVar[Faults.NonFinitePolicy]
        NON_FINITE_POLICY_STOP: _ClassVar[Faults.NonFinitePolicy]
    NON_FINITE_POLICY_UNSPECIFIED: Faults.NonFinitePolicy
    NON_FINITE_POLICY_SKIP: Faults.NonFinitePolicy
    NON_FINITE_POLICY_REWIND: Faults.NonFinitePolicy
    NON_FINITE_POLICY_STOP: Faults.NonFinitePolicy
    INFRA_RETRIES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_RETRIES_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    HANG_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    NON_FINITE_FIELD_NUMBER: _ClassVar[int]
    infra_retries: int
    memory_retries: int
    checkpoint: CheckpointPolicy
    hang_timeout: _duration_pb2.Duration
    non_finite: Faults.NonFinitePolicy
    def __init__(self, infra_retries: _Optional[int] = ..., memory_retries: _Optional[int] = ..., checkpoint: _Optional[_Union[CheckpointPolicy, _Mapping]] = ..., hang_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., non_finite: _Optional[_Union[Faults.NonFinitePolicy, str]] = ...) -> None: ...

class CheckpointPolicy(_message.Message):
    __slots__ = ("every_steps", "every", "keep_last")
    EVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    EVERY_FIELD_NUMBER: _ClassVar[int]
    KEEP_LAST_FIELD_NUMBER: _ClassVar[int]
    every_steps: int
    every: _duration_pb2.Duration
    keep_last: int
    def __init__(self, every_steps: _Optional[int] = ..., every: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., keep_last: _Optional[int] = ...) -> None: ...

class Output(_message.Message):
    __slots__ = ("uri", "form")
    class ExportForm(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        EXPORT_FORM_UNSPECIFIED: _ClassVar[Output.ExportForm]
        EXPORT_FORM_AUTO: _ClassVar[Output.ExportForm]
        EXPORT_FORM_ADAPTER: _ClassVar[Output.ExportForm]
        EXPORT_FORM_MERGED: _ClassVar[Output.ExportForm]
    EXPORT_FORM_UNSPECIFIED: Output.ExportForm
    EXPORT_FORM_AUTO: Output.ExportForm
    EXPORT_FORM_ADAPTER: Output.ExportForm
    EXPORT_FORM_MERGED: Output.ExportForm
    URI_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    uri: str
    form: Output.ExportForm
    def __init__(self, uri: _Optional[str] = ..., form: _Optional[_Union[Output.ExportForm, str]] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("every_steps", "max_rows", "generate_rows", "max_new_tokens", "early_stop")
    EVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    GENERATE_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EARLY_STOP_FIELD_NUMBER: _ClassVar[int]
    every_steps: int
    max_rows: int
    generate_rows: int
    max_new_tokens: int
    early_stop: EarlyStop
    def __init__(self, every_steps: _Optional[int] = ..., max_rows: _Optional[int] = ..., generate_rows: _Optional[int] = ..., max_new_tokens: _Optional[int] = ..., early_stop: _Optional[_Union[EarlyStop, _Mapping]] = ...) -> None: ...

class EarlyStop(_message.Message):
    __slots__ = ("patience", "min_delta")
    PATIENCE_FIELD_NUMBER: _ClassVar[int]
    MIN_DELTA_FIELD_NUMBER: _ClassVar[int]
    patience: int
    min_delta: float
    def __init__(self, patience: _Optional[int] = ..., min_delta: _Optional[float] = ...) -> None: ...

class SecretRef(_message.Message):
    __slots__ = ("env", "secret")
    ENV_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    env: str
    secret: str
    def __init__(self, env: _Optional[str] = ..., secret: _Optional[str] = ...) -> None: ...
