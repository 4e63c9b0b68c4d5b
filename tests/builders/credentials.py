"""Credentials of nobody, which must stand in nothing that is shown or written."""

from __future__ import annotations

import base64

SECRET = "a-secret-that-is-written-nowhere"
ACCOUNT_KEY = base64.b64encode(SECRET.encode()).decode()
KEY = "bm90LWEtcmVhbC1rZXktYnV0LWFzLWxvbmctYXMtb25lLW9mLWF6dXJl"
SIGNATURE = "c2lnbmF0dXJlLW9mLW5vLXVzZS10by1hbnlib2R5%3D"
TOKEN = "ya29.a0no-token-of-anybody"
