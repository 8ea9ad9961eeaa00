"""Text in, text out: tokenizers, chats, ragged prompts, streamed answers."""
