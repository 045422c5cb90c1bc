"""A LangChain program over google-genai or openai, without a line about key rotation."""

from __future__ import annotations

from langchain.agents import create_agent

try:
    from langchain_google_genai import ChatGoogleGenerativeAI as Chat
except ImportError:  # the environment of openai
    from langchain_openai import ChatOpenAI as Chat

MODEL = "gemini-3.1-flash-lite"
QUESTION = "What is the weather in Paris?"
tool_runs: list[str] = []


def get_weather(city: str) -> str:
    """Return the weather of a city."""
    tool_runs.append(city)
    return "sunny"


llm = Chat(model=MODEL)
agent = create_agent(llm, tools=[get_weather])
MESSAGES = {"messages": [{"role": "user", "content": QUESTION}]}


def sync() -> str:
    """Ask once."""
    return str(llm.invoke(QUESTION).text)


def stream() -> str:
    """Ask once and read the answer chunk by chunk."""
    return "".join(str(chunk.text) for chunk in llm.stream(QUESTION))


def tool() -> str:
    """Let an agent answer with its tool."""
    return str(agent.invoke(MESSAGES)["messages"][-1].text)


async def async_() -> str:
    """Ask once, async."""
    return str((await llm.ainvoke(QUESTION)).text)


async def async_stream() -> str:
    """Ask once and read the answer chunk by chunk, async."""
    return "".join([str(chunk.text) async for chunk in llm.astream(QUESTION)])


async def async_tool() -> str:
    """Let an agent answer with its tool, async."""
    return str((await agent.ainvoke(MESSAGES))["messages"][-1].text)
