document.getElementById("main").replaceChildren();
if (data.runs.length) overview();
rollouts();
evaluations();
if (data.runs.length) configs();
