from google.api import field_behavior_pb2 as _field_behavior_pb2
from luthier.v1 import job_pb2 as _job_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListQueuesRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListQueuesResponse(_message.Message):
    __slots__ = ("queues", "next_page_token")
    QUEUES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    queues: _containers.RepeatedCompositeFieldContainer[Queue]
    next_page_token: str
    def __init__(self, queues: _Optional[_Iterable[_Union[Queue, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetQueueRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class Queue(_message.Message):
    __slots__ = ("name", "capacity", "used", "waiting", "waiting_count")
    class Capacity(_message.Message):
        __slots__ = ("cpu_slots", "accelerators")
        CPU_SLOTS_FIELD_NUMBER: _ClassVar[int]
        ACCELERATORS_FIELD_NUMBER: _ClassVar[int]
        cpu_slots: int
        accelerators: int
        def __init__(self, cpu_slots: _Optional[int] = ..., accelerators: _Optional[int] = ...) -> None: ...
    class WaitingJob(_message.Message):
        __slots__ = ("job", "waiting")
        JOB_FIELD_NUMBER: _ClassVar[int]
        WAITING_FIELD_NUMBER: _ClassVar[int]
        job: str
        waiting: _job_pb2.Waiting
        def __init__(self, job: _Optional[str] = ..., waiting: _Optional[_Union[_job_pb2.Waiting, _Mapping]] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    WAITING_COUNT_FIELD_NUMBER: _ClassVar[int]
    name: str
    capacity: Queue.Capacity
    used: Queue.Capacity
    waiting: _containers.RepeatedCompositeFieldContainer[Queue.WaitingJob]
    waiting_count: int
    def __init__(self, name: _Optional[str] = ..., capacity: _Optional[_Union[Queue.Capacity, _Mapping]] = ..., used: _Optional[_Union[Queue.Capacity, _Mapping]] = ..., waiting: _Optional[_Iterable[_Union[Queue.WaitingJob, _Mapping]]] = ..., waiting_count: _Optional[int] = ...) -> None: ...
