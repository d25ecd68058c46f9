"""A worker of somebody else, who knows the platform's Temporal contract and nothing of its code."""

from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy


@workflow.defn(name="ForeignWorkflow")
class ForeignWorkflow:
    """Calls activities by name, one after another, with plain JSON; answers with what they answered."""

    @workflow.run
    async def run(self, calls: list[list[Any]]) -> list[Any]:
        return [
            await workflow.execute_activity(
                name,
                args=arguments,
                task_queue="backend-operations",
                start_to_close_timeout=timedelta(seconds=60),
                retry_policy=RetryPolicy(maximum_attempts=2),
            )
            for name, *arguments in calls
        ]
