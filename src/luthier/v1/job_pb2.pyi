import datetime

from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.api import resource_pb2 as _resource_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from luthier.v1 import spec_pb2 as _spec_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EndCause(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    END_CAUSE_UNSPECIFIED: _ClassVar[EndCause]
    END_CAUSE_FINISHED: _ClassVar[EndCause]
    END_CAUSE_CONFIGURATION: _ClassVar[EndCause]
    END_CAUSE_DATA: _ClassVar[EndCause]
    END_CAUSE_METHOD: _ClassVar[EndCause]
    END_CAUSE_MEMORY: _ClassVar[EndCause]
    END_CAUSE_NETWORK: _ClassVar[EndCause]
    END_CAUSE_NON_FINITE: _ClassVar[EndCause]
    END_CAUSE_STORAGE: _ClassVar[EndCause]
    END_CAUSE_LEFT: _ClassVar[EndCause]
    END_CAUSE_KILLED: _ClassVar[EndCause]
    END_CAUSE_HUNG: _ClassVar[EndCause]
    END_CAUSE_NODE_LOST: _ClassVar[EndCause]
    END_CAUSE_EVICTED: _ClassVar[EndCause]
    END_CAUSE_GANG_TIMEOUT: _ClassVar[EndCause]
    END_CAUSE_PREFLIGHT: _ClassVar[EndCause]
    END_CAUSE_DEPENDENCY: _ClassVar[EndCause]
    END_CAUSE_DEADLINE: _ClassVar[EndCause]
    END_CAUSE_CANCELLED: _ClassVar[EndCause]
    END_CAUSE_LAUNCH: _ClassVar[EndCause]
    END_CAUSE_OTHER: _ClassVar[EndCause]
END_CAUSE_UNSPECIFIED: EndCause
END_CAUSE_FINISHED: EndCause
END_CAUSE_CONFIGURATION: EndCause
END_CAUSE_DATA: EndCause
END_CAUSE_METHOD: EndCause
END_CAUSE_MEMORY: EndCause
END_CAUSE_NETWORK: EndCause
END_CAUSE_NON_FINITE: EndCause
END_CAUSE_STORAGE: EndCause
END_CAUSE_LEFT: EndCause
END_CAUSE_KILLED: EndCause
END_CAUSE_HUNG: EndCause
END_CAUSE_NODE_LOST: EndCause
END_CAUSE_EVICTED: EndCause
END_CAUSE_GANG_TIMEOUT: EndCause
END_CAUSE_PREFLIGHT: EndCause
END_CAUSE_DEPENDENCY: EndCause
END_CAUSE_DEADLINE: EndCause
END_CAUSE_CANCELLED: EndCause
END_CAUSE_LAUNCH: EndCause
END_CAUSE_OTHER: EndCause

class Job(_message.Message):
    __slots__ = ("name", "uid", "tenant", "display_name", "labels", "spec", "state", "waiting", "failure", "progress", "result", "attempt", "generation", "etag", "create_time", "update_time", "start_time", "end_time", "cause_times", "budget_used", "dependencies", "num_nodes")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Job.State]
        QUEUED: _ClassVar[Job.State]
        STARTING: _ClassVar[Job.State]
        RUNNING: _ClassVar[Job.State]
        PAUSING: _ClassVar[Job.State]
        PAUSED: _ClassVar[Job.State]
        CANCELLING: _ClassVar[Job.State]
        SUCCEEDED: _ClassVar[Job.State]
        FAILED: _ClassVar[Job.State]
        CANCELLED: _ClassVar[Job.State]
    STATE_UNSPECIFIED: Job.State
    QUEUED: Job.State
    STARTING: Job.State
    RUNNING: Job.State
    PAUSING: Job.State
    PAUSED: Job.State
    CANCELLING: Job.State
    SUCCEEDED: Job.State
    FAILED: Job.State
    CANCELLED: Job.State
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class BudgetUsedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    CAUSE_TIMES_FIELD_NUMBER: _ClassVar[int]
    BUDGET_USED_FIELD_NUMBER: _ClassVar[int]
    DEPENDENCIES_FIELD_NUMBER: _ClassVar[int]
    NUM_NODES_FIELD_NUMBER: _ClassVar[int]
    name: str
    uid: str
    tenant: str
    display_name: str
    labels: _containers.ScalarMap[str, str]
    spec: _spec_pb2.JobSpec
    state: Job.State
    waiting: Waiting
    failure: Failure
    progress: Progress
    result: Result
    attempt: int
    generation: int
    etag: str
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    cause_times: _containers.RepeatedCompositeFieldContainer[CauseTime]
    budget_used: _containers.ScalarMap[str, int]
    dependencies: _containers.RepeatedCompositeFieldContainer[Dependency]
    num_nodes: int
    def __init__(self, name: _Optional[str] = ..., uid: _Optional[str] = ..., tenant: _Optional[str] = ..., display_name: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., spec: _Optional[_Union[_spec_pb2.JobSpec, _Mapping]] = ..., state: _Optional[_Union[Job.State, str]] = ..., waiting: _Optional[_Union[Waiting, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., result: _Optional[_Union[Result, _Mapping]] = ..., attempt: _Optional[int] = ..., generation: _Optional[int] = ..., etag: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., cause_times: _Optional[_Iterable[_Union[CauseTime, _Mapping]]] = ..., budget_used: _Optional[_Mapping[str, int]] = ..., dependencies: _Optional[_Iterable[_Union[Dependency, _Mapping]]] = ..., num_nodes: _Optional[int] = ...) -> None: ...

class Waiting(_message.Message):
    __slots__ = ("reason", "message", "position", "estimated_start_time", "retry_time")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[Waiting.Reason]
        DEPENDENCY: _ClassVar[Waiting.Reason]
        CAPACITY: _ClassVar[Waiting.Reason]
        QUOTA: _ClassVar[Waiting.Reason]
        RETRYING: _ClassVar[Waiting.Reason]
        PREEMPTED: _ClassVar[Waiting.Reason]
        SUSPENDED: _ClassVar[Waiting.Reason]
        ADMITTED: _ClassVar[Waiting.Reason]
        FORMING: _ClassVar[Waiting.Reason]
        PREFLIGHT: _ClassVar[Waiting.Reason]
    REASON_UNSPECIFIED: Waiting.Reason
    DEPENDENCY: Waiting.Reason
    CAPACITY: Waiting.Reason
    QUOTA: Waiting.Reason
    RETRYING: Waiting.Reason
    PREEMPTED: Waiting.Reason
    SUSPENDED: Waiting.Reason
    ADMITTED: Waiting.Reason
    FORMING: Waiting.Reason
    PREFLIGHT: Waiting.Reason
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_START_TIME_FIELD_NUMBER: _ClassVar[int]
    RETRY_TIME_FIELD_NUMBER: _ClassVar[int]
    reason: Waiting.Reason
    message: str
    position: int
    estimated_start_time: _timestamp_pb2.Timestamp
    retry_time: _timestamp_pb2.Timestamp
    def __init__(self, reason: _Optional[_Union[Waiting.Reason, str]] = ..., message: _Optional[str] = ..., position: _Optional[int] = ..., estimated_start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., retry_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("cause", "message", "attempt", "generation", "node", "rank", "exit_code", "log_lines", "step")
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    LOG_LINES_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    cause: EndCause
    message: str
    attempt: int
    generation: int
    node: int
    rank: int
    exit_code: int
    log_lines: _containers.RepeatedScalarFieldContainer[str]
    step: int
    def __init__(self, cause: _Optional[_Union[EndCause, str]] = ..., message: _Optional[str] = ..., attempt: _Optional[int] = ..., generation: _Optional[int] = ..., node: _Optional[int] = ..., rank: _Optional[int] = ..., exit_code: _Optional[int] = ..., log_lines: _Optional[_Iterable[str]] = ..., step: _Optional[int] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("phase", "phase_index", "step", "total_steps", "loss", "eval_loss", "tokens_per_second", "eta", "checkpoint", "checkpoint_step", "fraction", "device")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    PHASE_INDEX_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    EVAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    ETA_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_STEP_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    phase: str
    phase_index: int
    step: int
    total_steps: int
    loss: float
    eval_loss: float
    tokens_per_second: float
    eta: _duration_pb2.Duration
    checkpoint: str
    checkpoint_step: int
    fraction: float
    device: str
    def __init__(self, phase: _Optional[str] = ..., phase_index: _Optional[int] = ..., step: _Optional[int] = ..., total_steps: _Optional[int] = ..., loss: _Optional[float] = ..., eval_loss: _Optional[float] = ..., tokens_per_second: _Optional[float] = ..., eta: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., checkpoint: _Optional[str] = ..., checkpoint_step: _Optional[int] = ..., fraction: _Optional[float] = ..., device: _Optional[str] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("uri", "digest", "kind", "metrics", "samples", "verdicts", "report")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class VerdictsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    URI_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    uri: str
    digest: str
    kind: str
    metrics: _containers.ScalarMap[str, float]
    samples: _containers.RepeatedCompositeFieldContainer[Sample]
    verdicts: _containers.ScalarMap[str, int]
    report: _struct_pb2.Struct
    def __init__(self, uri: _Optional[str] = ..., digest: _Optional[str] = ..., kind: _Optional[str] = ..., metrics: _Optional[_Mapping[str, float]] = ..., samples: _Optional[_Iterable[_Union[Sample, _Mapping]]] = ..., verdicts: _Optional[_Mapping[str, int]] = ..., report: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class Sample(_message.Message):
    __slots__ = ("prompt", "expected", "before", "after")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    expected: str
    before: str
    after: str
    def __init__(self, prompt: _Optional[str] = ..., expected: _Optional[str] = ..., before: _Optional[str] = ..., after: _Optional[str] = ...) -> None: ...

class CauseTime(_message.Message):
    __slots__ = ("cause", "duration")
    class Cause(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        CAUSE_UNSPECIFIED: _ClassVar[CauseTime.Cause]
        QUEUED: _ClassVar[CauseTime.Cause]
        STARTING: _ClassVar[CauseTime.Cause]
        PRODUCTIVE: _ClassVar[CauseTime.Cause]
        EVALUATING: _ClassVar[CauseTime.Cause]
        GENERATING: _ClassVar[CauseTime.Cause]
        CHECKPOINT_STALL: _ClassVar[CauseTime.Cause]
        RECOMPUTED: _ClassVar[CauseTime.Cause]
        RESTARTING: _ClassVar[CauseTime.Cause]
        HUNG: _ClassVar[CauseTime.Cause]
        PAUSED: _ClassVar[CauseTime.Cause]
    CAUSE_UNSPECIFIED: CauseTime.Cause
    QUEUED: CauseTime.Cause
    STARTING: CauseTime.Cause
    PRODUCTIVE: CauseTime.Cause
    EVALUATING: CauseTime.Cause
    GENERATING: CauseTime.Cause
    CHECKPOINT_STALL: CauseTime.Cause
    RECOMPUTED: CauseTime.Cause
    RESTARTING: CauseTime.Cause
    HUNG: CauseTime.Cause
    PAUSED: CauseTime.Cause
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    cause: CauseTime.Cause
    duration: _duration_pb2.Duration
    def __init__(self, cause: _Optional[_Union[CauseTime.Cause, str]] = ..., duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Dependency(_message.Message):
    __slots__ = ("job", "uid", "artifact", "digest")
    JOB_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    job: str
    uid: str
    artifact: str
    digest: str
    def __init__(self, job: _Optional[str] = ..., uid: _Optional[str] = ..., artifact: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...

class Attempt(_message.Message):
    __slots__ = ("name", "number", "end_cause", "message", "create_time", "end_time", "close_time", "generations", "nodes", "executor")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    END_CAUSE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    CLOSE_TIME_FIELD_NUMBER: _ClassVar[int]
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    EXECUTOR_FIELD_NUMBER: _ClassVar[int]
    name: str
    number: int
    end_cause: EndCause
    message: str
    create_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    close_time: _timestamp_pb2.Timestamp
    generations: _containers.RepeatedCompositeFieldContainer[Generation]
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    executor: str
    def __init__(self, name: _Optional[str] = ..., number: _Optional[int] = ..., end_cause: _Optional[_Union[EndCause, str]] = ..., message: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., close_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., generations: _Optional[_Iterable[_Union[Generation, _Mapping]]] = ..., nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ..., executor: _Optional[str] = ...) -> None: ...

class Generation(_message.Message):
    __slots__ = ("number", "create_time", "end_time", "end_cause", "resume_from", "start_step", "last_step")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    END_CAUSE_FIELD_NUMBER: _ClassVar[int]
    RESUME_FROM_FIELD_NUMBER: _ClassVar[int]
    START_STEP_FIELD_NUMBER: _ClassVar[int]
    LAST_STEP_FIELD_NUMBER: _ClassVar[int]
    number: int
    create_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    end_cause: EndCause
    resume_from: str
    start_step: int
    last_step: int
    def __init__(self, number: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_cause: _Optional[_Union[EndCause, str]] = ..., resume_from: _Optional[str] = ..., start_step: _Optional[int] = ..., last_step: _Optional[int] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("index", "incarnation", "host", "metrics_port", "state", "exit_code", "handle")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    METRICS_PORT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    index: int
    incarnation: str
    host: str
    metrics_port: int
    state: str
    exit_code: int
    handle: str
    def __init__(self, index: _Optional[int] = ..., incarnation: _Optional[str] = ..., host: _Optional[str] = ..., metrics_port: _Optional[int] = ..., state: _Optional[str] = ..., exit_code: _Optional[int] = ..., handle: _Optional[str] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("sequence", "revision", "job", "job_uid", "create_time", "type", "message", "severity", "attempt", "generation", "node", "state", "details")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    JOB_UID_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    revision: int
    job: str
    job_uid: str
    create_time: _timestamp_pb2.Timestamp
    type: str
    message: str
    severity: str
    attempt: int
    generation: int
    node: int
    state: Job.State
    details: _struct_pb2.Struct
    def __init__(self, sequence: _Optional[int] = ..., revision: _Optional[int] = ..., job: _Optional[str] = ..., job_uid: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., type: _Optional[str] = ..., message: _Optional[str] = ..., severity: _Optional[str] = ..., attempt: _Optional[int] = ..., generation: _Optional[int] = ..., node: _Optional[int] = ..., state: _Optional[_Union[Job.State, str]] = ..., details: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("name", "attempt", "generation", "phase_index", "step", "size_bytes", "digest", "create_time", "path", "eval_loss", "removed")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    PHASE_INDEX_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    EVAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    name: str
    attempt: int
    generation: int
    phase_index: int
    step: int
    size_bytes: int
    digest: str
    create_time: _timestamp_pb2.Timestamp
    path: str
    eval_loss: float
    removed: bool
    def __init__(self, name: _Optional[str] = ..., attempt: _Optional[int] = ..., generation: _Optional[int] = ..., phase_index: _Optional[int] = ..., step: _Optional[int] = ..., size_bytes: _Optional[int] = ..., digest: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., path: _Optional[str] = ..., eval_loss: _Optional[float] = ..., removed: _Optional[bool] = ...) -> None: ...
