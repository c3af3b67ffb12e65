// Custom Diffusion: what its tabs need of the page beyond the WebUI's own functions.

function refreshCustomDiffusionCards() {
    // The host's own button, which reads all its pages anew: a training leaves a delta and an embedding.
    for (const tab of ['txt2img', 'img2img']) extraNetworksControlRefreshOnClick(null, tab, 'deltas');
}

function watchCustomDiffusionJob(id, outcomeId, progressArea, gallery, showText) {
    // Gradio gives an HTML part's id to its frame as well; what it fills later is the inner one.
    gradioApp().querySelector('#' + outcomeId + '.prose').innerHTML = '';
    const atEnd = function() {
        refreshCustomDiffusionCards();
        if (progressArea.id == 'cd_utils_gallery') showText.innerHTML = ''; // the curve of a training stays
    };
    requestProgress(id, progressArea, gallery, atEnd, function(progress) {
        if (progress.textinfo && (progress.active || progress.queued)) showText.innerHTML = progress.textinfo;
    });
}

function watchCustomDiffusionTraining(id) {
    const [output, gallery, text] = ['ti_output', 'ti_gallery', 'ti_progress'].map((id) => gradioApp().getElementById(id));
    watchCustomDiffusionJob(id, 'cd_outcome', output, gallery, text);
}

function withCustomDiffusionTask(id, args) {
    return [id, ...Array.from(args).slice(1)];
}

function startCustomDiffusionTraining() {
    // As the API names its trainings: a page that is opened later knows by it what is running.
    const id = randomId().replace('task(', 'task(train-custom-diffusion-');
    watchCustomDiffusionTraining(id);
    return withCustomDiffusionTask(id, arguments);
}

function startCustomDiffusionEstimate() {
    const id = randomId();
    watchCustomDiffusionTraining(id);
    return withCustomDiffusionTask(id, arguments);
}

function startCustomDiffusionUtility() {
    const id = randomId();
    const [area, text] = ['cd_utils_gallery', 'cd_utils_progress'].map((id) => gradioApp().getElementById(id));
    watchCustomDiffusionJob(id, 'cd_utils_outcome', area, area, text);
    return withCustomDiffusionTask(id, arguments);
}

// A page that is opened while a training runs shows it, and how it ends.
let customDiffusionTrainingFound = '';

// The page's options are there after its parts, and without them the host shows no bar.
onOptionsAvailable(async function() {
    const answer = await fetch('./internal/custom-diffusion-training');
    customDiffusionTrainingFound = answer.ok ? (await answer.json()).task : '';
    if (customDiffusionTrainingFound) gradioApp().getElementById('cd_reopened').click();
});

function endOfCustomDiffusionTraining() {
    watchCustomDiffusionTraining(customDiffusionTrainingFound);
    return [customDiffusionTrainingFound];
}

function customDiffusionToTxt2img(prompt) {
    const box = gradioApp().querySelector('#txt2img_prompt textarea');
    box.value = prompt;
    updateInput(box);
    switch_to_txt2img();
    return [];
}
