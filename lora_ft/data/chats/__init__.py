"""Exports of group chats: one reader a format, and what makes rows of their messages."""
