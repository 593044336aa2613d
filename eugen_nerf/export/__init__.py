"""eugen-export and eugen-view: a trained scene as a static web page that renders it in the visitor's browser."""
