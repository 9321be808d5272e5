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

class Fence(_message.Message):
    __slots__ = ("attempt", "generation")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    generation: int
    def __init__(self, attempt: _Optional[int] = ..., generation: _Optional[int] = ...) -> None: ...

class AttachRequest(_message.Message):
    __slots__ = ("hello", "ready", "fact", "samples", "log", "heartbeat")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    FACT_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    ready: Ready
    fact: Fact
    samples: Samples
    log: LogChunk
    heartbeat: Heartbeat
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., ready: _Optional[_Union[Ready, _Mapping]] = ..., fact: _Optional[_Union[Fact, _Mapping]] = ..., samples: _Optional[_Union[Samples, _Mapping]] = ..., log: _Optional[_Union[LogChunk, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("token", "job_uid", "attempt", "node", "incarnation", "last_fence", "versions", "host", "metrics_port", "handle")
    class VersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    JOB_UID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    LAST_FENCE_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    METRICS_PORT_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    token: str
    job_uid: str
    attempt: int
    node: int
    incarnation: str
    last_fence: Fence
    versions: _containers.ScalarMap[str, str]
    host: str
    metrics_port: int
    handle: str
    def __init__(self, token: _Optional[str] = ..., job_uid: _Optional[str] = ..., attempt: _Optional[int] = ..., node: _Optional[int] = ..., incarnation: _Optional[str] = ..., last_fence: _Optional[_Union[Fence, _Mapping]] = ..., versions: _Optional[_Mapping[str, str]] = ..., host: _Optional[str] = ..., metrics_port: _Optional[int] = ..., handle: _Optional[str] = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ("last_fence", "address", "candidates", "journal_heads", "device", "num_devices")
    LAST_FENCE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_HEADS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    NUM_DEVICES_FIELD_NUMBER: _ClassVar[int]
    last_fence: Fence
    address: str
    candidates: _containers.RepeatedCompositeFieldContainer[CheckpointCandidate]
    journal_heads: _containers.RepeatedCompositeFieldContainer[JournalHead]
    device: str
    num_devices: int
    def __init__(self, last_fence: _Optional[_Union[Fence, _Mapping]] = ..., address: _Optional[str] = ..., candidates: _Optional[_Iterable[_Union[CheckpointCandidate, _Mapping]]] = ..., journal_heads: _Optional[_Iterable[_Union[JournalHead, _Mapping]]] = ..., device: _Optional[str] = ..., num_devices: _Optional[int] = ...) -> None: ...

class CheckpointCandidate(_message.Message):
    __slots__ = ("fence", "phase_index", "step", "digest", "path")
    FENCE_FIELD_NUMBER: _ClassVar[int]
    PHASE_INDEX_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    fence: Fence
    phase_index: int
    step: int
    digest: str
    path: str
    def __init__(self, fence: _Optional[_Union[Fence, _Mapping]] = ..., phase_index: _Optional[int] = ..., step: _Optional[int] = ..., digest: _Optional[str] = ..., path: _Optional[str] = ...) -> None: ...

class JournalHead(_message.Message):
    __slots__ = ("fence", "index", "digest", "path")
    FENCE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    fence: Fence
    index: int
    digest: str
    path: str
    def __init__(self, fence: _Optional[_Union[Fence, _Mapping]] = ..., index: _Optional[int] = ..., digest: _Optional[str] = ..., path: _Optional[str] = ...) -> None: ...

class Fact(_message.Message):
    __slots__ = ("sequence", "fence", "age", "rank_exited", "section_times", "phase_started", "phase_done", "checkpoint_committed", "save_failed", "resumed_from", "artifact", "verdicts", "preflight", "plan_finished", "obeyed", "note")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    AGE_FIELD_NUMBER: _ClassVar[int]
    RANK_EXITED_FIELD_NUMBER: _ClassVar[int]
    SECTION_TIMES_FIELD_NUMBER: _ClassVar[int]
    PHASE_STARTED_FIELD_NUMBER: _ClassVar[int]
    PHASE_DONE_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_COMMITTED_FIELD_NUMBER: _ClassVar[int]
    SAVE_FAILED_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FROM_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    PREFLIGHT_FIELD_NUMBER: _ClassVar[int]
    PLAN_FINISHED_FIELD_NUMBER: _ClassVar[int]
    OBEYED_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    fence: Fence
    age: _duration_pb2.Duration
    rank_exited: RankExited
    section_times: SectionTimes
    phase_started: PhaseStarted
    phase_done: PhaseDone
    checkpoint_committed: CheckpointCommitted
    save_failed: SaveFailed
    resumed_from: ResumedFrom
    artifact: ArtifactMade
    verdicts: Verdicts
    preflight: PreflightResult
    plan_finished: PlanFinished
    obeyed: Obeyed
    note: Note
    def __init__(self, sequence: _Optional[int] = ..., fence: _Optional[_Union[Fence, _Mapping]] = ..., age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., rank_exited: _Optional[_Union[RankExited, _Mapping]] = ..., section_times: _Optional[_Union[SectionTimes, _Mapping]] = ..., phase_started: _Optional[_Union[PhaseStarted, _Mapping]] = ..., phase_done: _Optional[_Union[PhaseDone, _Mapping]] = ..., checkpoint_committed: _Optional[_Union[CheckpointCommitted, _Mapping]] = ..., save_failed: _Optional[_Union[SaveFailed, _Mapping]] = ..., resumed_from: _Optional[_Union[ResumedFrom, _Mapping]] = ..., artifact: _Optional[_Union[ArtifactMade, _Mapping]] = ..., verdicts: _Optional[_Union[Verdicts, _Mapping]] = ..., preflight: _Optional[_Union[PreflightResult, _Mapping]] = ..., plan_finished: _Optional[_Union[PlanFinished, _Mapping]] = ..., obeyed: _Optional[_Union[Obeyed, _Mapping]] = ..., note: _Optional[_Union[Note, _Mapping]] = ...) -> None: ...

class RankExited(_message.Message):
    __slots__ = ("rank", "code", "message", "section", "step", "log_lines", "hung", "reaped", "phase_index")
    RANK_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SECTION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    LOG_LINES_FIELD_NUMBER: _ClassVar[int]
    HUNG_FIELD_NUMBER: _ClassVar[int]
    REAPED_FIELD_NUMBER: _ClassVar[int]
    PHASE_INDEX_FIELD_NUMBER: _ClassVar[int]
    rank: int
    code: int
    message: str
    section: str
    step: int
    log_lines: _containers.RepeatedScalarFieldContainer[str]
    hung: bool
    reaped: bool
    phase_index: int
    def __init__(self, rank: _Optional[int] = ..., code: _Optional[int] = ..., message: _Optional[str] = ..., section: _Optional[str] = ..., step: _Optional[int] = ..., log_lines: _Optional[_Iterable[str]] = ..., hung: _Optional[bool] = ..., reaped: _Optional[bool] = ..., phase_index: _Optional[int] = ...) -> None: ...

class SectionTimes(_message.Message):
    __slots__ = ("seconds",)
    class SecondsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    seconds: _containers.ScalarMap[str, float]
    def __init__(self, seconds: _Optional[_Mapping[str, float]] = ...) -> None: ...

class PhaseStarted(_message.Message):
    __slots__ = ("index", "kind", "fingerprint", "total_steps", "start_step", "device", "title")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    START_STEP_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    index: int
    kind: str
    fingerprint: str
    total_steps: int
    start_step: int
    device: str
    title: str
    def __init__(self, index: _Optional[int] = ..., kind: _Optional[str] = ..., fingerprint: _Optional[str] = ..., total_steps: _Optional[int] = ..., start_step: _Optional[int] = ..., device: _Optional[str] = ..., title: _Optional[str] = ...) -> None: ...

class PhaseDone(_message.Message):
    __slots__ = ("index", "kind", "journal", "metrics")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    INDEX_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    index: int
    kind: str
    journal: JournalHead
    metrics: _containers.ScalarMap[str, float]
    def __init__(self, index: _Optional[int] = ..., kind: _Optional[str] = ..., journal: _Optional[_Union[JournalHead, _Mapping]] = ..., metrics: _Optional[_Mapping[str, float]] = ...) -> None: ...

class CheckpointCommitted(_message.Message):
    __slots__ = ("checkpoint", "size_bytes", "stall_seconds", "persist_seconds", "eval_loss", "removed")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    STALL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PERSIST_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EVAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    checkpoint: CheckpointCandidate
    size_bytes: int
    stall_seconds: float
    persist_seconds: float
    eval_loss: float
    removed: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, checkpoint: _Optional[_Union[CheckpointCandidate, _Mapping]] = ..., size_bytes: _Optional[int] = ..., stall_seconds: _Optional[float] = ..., persist_seconds: _Optional[float] = ..., eval_loss: _Optional[float] = ..., removed: _Optional[_Iterable[str]] = ...) -> None: ...

class SaveFailed(_message.Message):
    __slots__ = ("step", "message", "training_on")
    STEP_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TRAINING_ON_FIELD_NUMBER: _ClassVar[int]
    step: int
    message: str
    training_on: bool
    def __init__(self, step: _Optional[int] = ..., message: _Optional[str] = ..., training_on: _Optional[bool] = ...) -> None: ...

class ResumedFrom(_message.Message):
    __slots__ = ("checkpoint", "rejected")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    checkpoint: CheckpointCandidate
    rejected: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, checkpoint: _Optional[_Union[CheckpointCandidate, _Mapping]] = ..., rejected: _Optional[_Iterable[str]] = ...) -> None: ...

class ArtifactMade(_message.Message):
    __slots__ = ("name", "kind", "digest", "path", "size_bytes", "phase_index")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PHASE_INDEX_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    digest: str
    path: str
    size_bytes: int
    phase_index: int
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., digest: _Optional[str] = ..., path: _Optional[str] = ..., size_bytes: _Optional[int] = ..., phase_index: _Optional[int] = ...) -> None: ...

class Verdicts(_message.Message):
    __slots__ = ("counts", "offenders")
    class CountsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    OFFENDERS_FIELD_NUMBER: _ClassVar[int]
    counts: _containers.ScalarMap[str, int]
    offenders: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, counts: _Optional[_Mapping[str, int]] = ..., offenders: _Optional[_Iterable[str]] = ...) -> None: ...

class PreflightResult(_message.Message):
    __slots__ = ("passed", "message", "user_error", "code", "seconds")
    class SecondsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    PASSED_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    USER_ERROR_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    passed: bool
    message: str
    user_error: bool
    code: int
    seconds: _containers.ScalarMap[str, float]
    def __init__(self, passed: _Optional[bool] = ..., message: _Optional[str] = ..., user_error: _Optional[bool] = ..., code: _Optional[int] = ..., seconds: _Optional[_Mapping[str, float]] = ...) -> None: ...

class PlanFinished(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: _struct_pb2.Struct
    def __init__(self, result: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class Obeyed(_message.Message):
    __slots__ = ("what", "stacks")
    class StacksEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: str
        def __init__(self, key: _Optional[int] = ..., value: _Optional[str] = ...) -> None: ...
    WHAT_FIELD_NUMBER: _ClassVar[int]
    STACKS_FIELD_NUMBER: _ClassVar[int]
    what: str
    stacks: _containers.ScalarMap[int, str]
    def __init__(self, what: _Optional[str] = ..., stacks: _Optional[_Mapping[int, str]] = ...) -> None: ...

class Note(_message.Message):
    __slots__ = ("type", "message", "severity", "details")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    type: str
    message: str
    severity: str
    details: _struct_pb2.Struct
    def __init__(self, type: _Optional[str] = ..., message: _Optional[str] = ..., severity: _Optional[str] = ..., details: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class Samples(_message.Message):
    __slots__ = ("fence", "rows")
    class Row(_message.Message):
        __slots__ = ("step", "phase_index", "values", "age", "total_steps", "plan_step")
        class ValuesEntry(_message.Message):
            __slots__ = ("key", "value")
            KEY_FIELD_NUMBER: _ClassVar[int]
            VALUE_FIELD_NUMBER: _ClassVar[int]
            key: str
            value: float
            def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
        STEP_FIELD_NUMBER: _ClassVar[int]
        PHASE_INDEX_FIELD_NUMBER: _ClassVar[int]
        VALUES_FIELD_NUMBER: _ClassVar[int]
        AGE_FIELD_NUMBER: _ClassVar[int]
        TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
        PLAN_STEP_FIELD_NUMBER: _ClassVar[int]
        step: int
        phase_index: int
        values: _containers.ScalarMap[str, float]
        age: _duration_pb2.Duration
        total_steps: int
        plan_step: int
        def __init__(self, step: _Optional[int] = ..., phase_index: _Optional[int] = ..., values: _Optional[_Mapping[str, float]] = ..., age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., total_steps: _Optional[int] = ..., plan_step: _Optional[int] = ...) -> None: ...
    FENCE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    fence: Fence
    rows: _containers.RepeatedCompositeFieldContainer[Samples.Row]
    def __init__(self, fence: _Optional[_Union[Fence, _Mapping]] = ..., rows: _Optional[_Iterable[_Union[Samples.Row, _Mapping]]] = ...) -> None: ...

class LogChunk(_message.Message):
    __slots__ = ("attempt", "rank", "offset", "data")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    rank: int
    offset: int
    data: bytes
    def __init__(self, attempt: _Optional[int] = ..., rank: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("fence", "ranks")
    class RankBeat(_message.Message):
        __slots__ = ("rank", "section", "step", "silence")
        RANK_FIELD_NUMBER: _ClassVar[int]
        SECTION_FIELD_NUMBER: _ClassVar[int]
        STEP_FIELD_NUMBER: _ClassVar[int]
        SILENCE_FIELD_NUMBER: _ClassVar[int]
        rank: int
        section: str
        step: int
        silence: _duration_pb2.Duration
        def __init__(self, rank: _Optional[int] = ..., section: _Optional[str] = ..., step: _Optional[int] = ..., silence: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...
    FENCE_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    fence: Fence
    ranks: _containers.RepeatedCompositeFieldContainer[Heartbeat.RankBeat]
    def __init__(self, fence: _Optional[_Union[Fence, _Mapping]] = ..., ranks: _Optional[_Iterable[_Union[Heartbeat.RankBeat, _Mapping]]] = ...) -> None: ...

class AttachResponse(_message.Message):
    __slots__ = ("ack", "waiting", "formed", "directive", "fenced")
    class Waiting(_message.Message):
        __slots__ = ("ready", "total")
        READY_FIELD_NUMBER: _ClassVar[int]
        TOTAL_FIELD_NUMBER: _ClassVar[int]
        ready: int
        total: int
        def __init__(self, ready: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...
    ACK_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    FORMED_FIELD_NUMBER: _ClassVar[int]
    DIRECTIVE_FIELD_NUMBER: _ClassVar[int]
    FENCED_FIELD_NUMBER: _ClassVar[int]
    ack: Ack
    waiting: AttachResponse.Waiting
    formed: Formed
    directive: Directive
    fenced: Fenced
    def __init__(self, ack: _Optional[_Union[Ack, _Mapping]] = ..., waiting: _Optional[_Union[AttachResponse.Waiting, _Mapping]] = ..., formed: _Optional[_Union[Formed, _Mapping]] = ..., directive: _Optional[_Union[Directive, _Mapping]] = ..., fenced: _Optional[_Union[Fenced, _Mapping]] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("sequence", "logs")
    class LogOffset(_message.Message):
        __slots__ = ("rank", "offset")
        RANK_FIELD_NUMBER: _ClassVar[int]
        OFFSET_FIELD_NUMBER: _ClassVar[int]
        rank: int
        offset: int
        def __init__(self, rank: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LOGS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    logs: _containers.RepeatedCompositeFieldContainer[Ack.LogOffset]
    def __init__(self, sequence: _Optional[int] = ..., logs: _Optional[_Iterable[_Union[Ack.LogOffset, _Mapping]]] = ...) -> None: ...

class Formed(_message.Message):
    __slots__ = ("fence", "first_rank", "local_size", "world_size", "address", "resume_from", "journal_head", "fallbacks", "micro_batch_size", "device")
    FENCE_FIELD_NUMBER: _ClassVar[int]
    FIRST_RANK_FIELD_NUMBER: _ClassVar[int]
    LOCAL_SIZE_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    RESUME_FROM_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_HEAD_FIELD_NUMBER: _ClassVar[int]
    FALLBACKS_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    fence: Fence
    first_rank: int
    local_size: int
    world_size: int
    address: str
    resume_from: CheckpointCandidate
    journal_head: JournalHead
    fallbacks: _containers.RepeatedCompositeFieldContainer[CheckpointCandidate]
    micro_batch_size: int
    device: str
    def __init__(self, fence: _Optional[_Union[Fence, _Mapping]] = ..., first_rank: _Optional[int] = ..., local_size: _Optional[int] = ..., world_size: _Optional[int] = ..., address: _Optional[str] = ..., resume_from: _Optional[_Union[CheckpointCandidate, _Mapping]] = ..., journal_head: _Optional[_Union[JournalHead, _Mapping]] = ..., fallbacks: _Optional[_Iterable[_Union[CheckpointCandidate, _Mapping]]] = ..., micro_batch_size: _Optional[int] = ..., device: _Optional[str] = ...) -> None: ...

class Directive(_message.Message):
    __slots__ = ("kind", "fence", "grace")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Directive.Kind]
        SAVE: _ClassVar[Directive.Kind]
        SAVE_AND_LEAVE: _ClassVar[Directive.Kind]
        STOP: _ClassVar[Directive.Kind]
        REAP: _ClassVar[Directive.Kind]
        DUMP_STACKS: _ClassVar[Directive.Kind]
    KIND_UNSPECIFIED: Directive.Kind
    SAVE: Directive.Kind
    SAVE_AND_LEAVE: Directive.Kind
    STOP: Directive.Kind
    REAP: Directive.Kind
    DUMP_STACKS: Directive.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    GRACE_FIELD_NUMBER: _ClassVar[int]
    kind: Directive.Kind
    fence: Fence
    grace: _duration_pb2.Duration
    def __init__(self, kind: _Optional[_Union[Directive.Kind, str]] = ..., fence: _Optional[_Union[Fence, _Mapping]] = ..., grace: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Fenced(_message.Message):
    __slots__ = ("message",)
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    message: str
    def __init__(self, message: _Optional[str] = ...) -> None: ...
