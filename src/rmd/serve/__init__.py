"""A server of students with OpenAI's interface: pictures and videos over HTTP."""
