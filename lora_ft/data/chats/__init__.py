"""Exports of group chats: one reader for each format, and the conversion of messages to rows."""
