// Custom Diffusion: what its tabs need of the page beyond the WebUI's own functions.

function refreshCustomDiffusionCards() {
    // The host's own button, which reads all its pages anew: a training leaves a delta and an embedding.
    for (const tab of ['txt2img', 'img2img']) extraNetworksControlRefreshOnClick(null, tab, 'deltas');
}

function startCustomDiffusionJob(outcomeId, progressArea, gallery, showText, args) {
    // Gradio gives an HTML part's id to its frame as well; what it fills later is the inner one.
    gradioApp().querySelector('#' + outcomeId + '.prose').innerHTML = '';
    const id = randomId();
    requestProgress(id, progressArea, gallery, refreshCustomDiffusionCards, function(progress) {
        if (progress.textinfo && (progress.active || progress.queued)) showText.innerHTML = progress.textinfo;
    });
    const inputs = Array.from(args);
    inputs[0] = id;
    return inputs;
}

function startCustomDiffusionTraining() {
    const app = gradioApp();
    const [output, gallery, text] = ['ti_output', 'ti_gallery', 'ti_progress'].map((id) => app.getElementById(id));
    return startCustomDiffusionJob('cd_outcome', output, gallery, text, arguments);
}

function startCustomDiffusionUtility() {
    const app = gradioApp();
    const [area, text] = ['cd_utils_gallery', 'cd_utils_progress'].map((id) => app.getElementById(id));
    return startCustomDiffusionJob('cd_utils_outcome', area, area, text, arguments);
}

function customDiffusionToTxt2img(prompt) {
    const box = gradioApp().querySelector('#txt2img_prompt textarea');
    box.value = prompt;
    updateInput(box);
    switch_to_txt2img();
    return [];
}
