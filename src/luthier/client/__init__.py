"""The Python client: `Client` (plain calls) and `AsyncClient` (asyncio) with the same methods.

from luthier import Client

with Client() as client:
    [job] = client.jobs.submit("examples/sft.yaml")
    print(job.wait().state)
"""

from luthier.client.asynchronous import AsyncClient
from luthier.client.connection import Connection, discover
from luthier.client.jobs import AsyncJob
from luthier.client.sync import Client, Job

__all__ = ["AsyncClient", "AsyncJob", "Client", "Connection", "Job", "discover"]
