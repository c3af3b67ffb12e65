// Custom Diffusion: what its tabs need of the page beyond the WebUI's own functions.

function refreshCustomDiffusionCards(_event, tab) {
    gradioApp().getElementById(tab + '_cd_refresh_cards').click();
}

function customDiffusionCardsCame(tab) {
    applyExtraNetworkFilter(`${tab}_deltas`);
    setupAllResizeHandles();
    // Where there are none, the host's filter wipes its "Nothing here" away; the style sheet says it then.
    gradioApp().getElementById(`${tab}_deltas_cards`).classList.add('cd-known');
    return [];
}

// The host fills all its pages of cards when it is opened, by a job in gradio's queue. Where the page is too busy to take
// it, gradio drops it: the cards stay "Loading...", or "Error" is written over them. Ours are asked for out of turn.
setInterval(function() {
    for (const tab of ['txt2img', 'img2img']) {
        const cards = gradioApp().getElementById(tab + '_deltas_cards');
        if (cards?.offsetParent && !cards.querySelector('.card') && !cards.classList.contains('cd-known')) refreshCustomDiffusionCards(null, tab);
    }
}, 5000);

// A card writes its tag and words into the prompt, and takes them out again. The host's own way knows no weight but of digits.
function customDiffusionCardClicked(tab, text) {
    const prompt = gradioApp().querySelector(`#${tab}_prompt > label > textarea`);
    const separator = opts.extra_networks_add_text_separator ?? ' '; // on a busy machine cards come before options
    const [, name, words] = text.match(/^<delta:([^>]*):[^:>]*>([^]*)$/);
    const tags = [...prompt.value.matchAll(/<delta:([^<>]*):[^:<>]*>/g)].filter((tag) => tag[1] == name).reverse();
    for (const tag of tags) {
        const before = prompt.value.slice(0, tag.index), after = prompt.value.slice(tag.index + tag[0].length);
        prompt.value = (before.endsWith(separator) ? before.slice(0, before.length - separator.length) : before)
            + (after.startsWith(words) ? after.slice(words.length) : after);
    }
    const tag = text.slice(0, text.length - words.length);
    if (!tags.length) prompt.value += separator + (words && prompt.value.includes(words.trim()) ? tag : text);
    updateInput(prompt);
}

const customDiffusionWatched = new Set();

function watchCustomDiffusionJob(id, outcomeId, progressArea, gallery, showText) {
    customDiffusionWatched.add(id);
    // Gradio gives an HTML part's id to its frame as well; what it fills later is the inner one. It fills nothing in if
    // the same is to be said again, so what is there is hidden, not removed.
    const outcome = gradioApp().querySelector('#' + outcomeId + '.prose');
    outcome.classList.add('cd-outdated');
    let before = outcome.innerHTML;
    let ended = false;
    const show = function() {
        if (ended) return;
        ended = true;
        outcome.classList.remove('cd-outdated', 'cd-past');
        showText.innerHTML = ''; // the outcome takes its place
        filled.disconnect();
    };
    const filled = new MutationObserver(function() {
        if (outcome.innerHTML == before || !outcome.textContent) return; // gradio draws the same again and again
        if (!outcome.querySelector('.cd-refused')) return show();
        before = outcome.innerHTML; // another job was refused meanwhile
        outcome.classList.remove('cd-outdated');
    });
    filled.observe(outcome, {childList: true, subtree: true, characterData: true});
    const atEnd = async function() {
        const job = await stateOfCustomDiffusionJob(id);
        if (job.active || job.queued) {
            filled.disconnect();
            watchCustomDiffusionJob(id, outcomeId, progressArea, gallery, showText);
            return;
        }
        for (const id of ['cd_estimate', 'cd_utils_outcome']) hideCustomDiffusionError(id, '.cd-refused');
        // The answer may come a little later than the end. One that gradio has dropped is asked for; one that says the
        // same as before changes nothing on the page.
        setTimeout(function() {
            if (!ended) fetchCustomDiffusionOutcome(id, outcomeId);
            setTimeout(show, 500);
        }, 500);
        for (const tab of ['txt2img', 'img2img']) refreshCustomDiffusionCards(null, tab);
    };
    requestProgress(id, progressArea, gallery, atEnd, function(progress) {
        if (progress.textinfo && !ended && (progress.active || progress.queued)) showText.innerHTML = progress.textinfo;
        // Ours tells the time that is left; the host would have the encoding of pictures last as long as the steps.
        const bar = progressArea.parentNode.querySelector('.progressDiv .progress');
        if (bar && showText.querySelector('.cd-progress')) bar.textContent = bar.textContent.replace(/ ETA: .*/, '');
    });
}

// The host stops watching when one of its questions is not answered, as when the computer has slept.
async function stateOfCustomDiffusionJob(id) {
    const question = {
        method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify({id_task: id, live_preview: false}),
    };
    for (;;) {
        const answer = await fetch('./internal/progress', question).catch(() => null);
        if (answer?.ok) return answer.json();
        await new Promise((goOn) => setTimeout(goOn, 5000));
    }
}

// There is one error at a time: an older one elsewhere is hidden, not what came of the training before, below it.
function hideCustomDiffusionError(id, kind = '.error') {
    const place = gradioApp().querySelector(`#${id}.prose`);
    if (place.querySelector(kind)) place.classList.add('cd-past');
}

function customDiffusionTrainingAreas() {
    return ['ti_output', 'ti_gallery', 'ti_progress'].map((id) => gradioApp().getElementById(id));
}

function watchCustomDiffusionTraining(id, outcomeId = 'cd_outcome') {
    hideCustomDiffusionError(outcomeId == 'cd_outcome' ? 'cd_estimate' : 'cd_outcome');
    watchCustomDiffusionJob(id, outcomeId, ...customDiffusionTrainingAreas());
}

// A page that is opened later knows by what an id begins with what is running.
function newCustomDiffusionTask(job, args) {
    return [randomId().replace('task(', `task(${job}-`), ...args.slice(1)];
}

// Each gets the id of a task, or '' if another job of ours is not over, as is told then.
function startCustomDiffusionTraining(id) {
    if (id) watchCustomDiffusionTraining(id); else showCustomDiffusionTrainingThatRuns();
    return Array.from(arguments);
}

function startCustomDiffusionEstimate(id) {
    if (id) watchCustomDiffusionTraining(id, 'cd_estimate'); else showCustomDiffusionTrainingThatRuns();
    return Array.from(arguments);
}

function startCustomDiffusionUtility(id) {
    const [area, text] = ['cd_utils_gallery', 'cd_utils_progress'].map((id) => gradioApp().getElementById(id));
    if (id) watchCustomDiffusionJob(id, 'cd_utils_outcome', area, area, text);
    return Array.from(arguments);
}

// One that another page has begun.
async function showCustomDiffusionTrainingThatRuns() {
    const {running} = await customDiffusionTrainings();
    if (running && !customDiffusionWatched.has(running)) watchCustomDiffusionJob(running, 'cd_outcome', ...customDiffusionTrainingAreas());
}

// How a training ended is shown where it was seen going on: in the host's column, while our tab is open.
onUiLoaded(function() {
    gradioApp().getElementById('ti_gallery_container').prepend(gradioApp().getElementById('cd_outcome_box'));
    for (const id of ['cd_estimate', 'cd_new_told', 'cd_utils_outcome']) {
        const told = gradioApp().querySelector(`#${id}.prose`);
        let said = told.innerHTML;
        new MutationObserver(function() {
            if (told.innerHTML == said) return;
            said = told.innerHTML;
            told.classList.remove('cd-past');
            if (id == 'cd_estimate' && told.querySelector('.error')) hideCustomDiffusionError('cd_outcome');
            if (id == 'cd_utils_outcome' || !said) return;
            setTimeout(() => told.offsetParent && told.scrollIntoView({block: 'nearest'})); // once it is shown
        }).observe(told, {childList: true, subtree: true});
    }
});

onUiUpdate(function() {
    const tab = gradioApp().getElementById('cd_train');
    const column = gradioApp().getElementById('ti_gallery_container');
    if (tab && column) column.classList.toggle('cd-open', tab.style.display != 'none');
});

let customDiffusionJob = '';

function customDiffusionJobThatEnded() {
    return [customDiffusionJob];
}

function fetchCustomDiffusionOutcome(id, outcomeId) {
    customDiffusionJob = id;
    gradioApp().getElementById(outcomeId + '_fetch').click();
}

async function customDiffusionTrainings() {
    const answer = await fetch('./internal/custom-diffusion-training').catch(() => null);
    return answer?.ok ? answer.json() : {running: '', last: ''};
}

// A page that is opened while a training runs shows it, and one that is opened later how it ended; both have the form as
// it was filled in, unless there is nothing to go on with.
let customDiffusionTrainingFound = '', customDiffusionTrainingRuns = false;

// The page's options are there after its parts, and without them the host shows no bar.
onOptionsAvailable(async function() {
    const found = await customDiffusionTrainings();
    customDiffusionTrainingFound = found.running || found.last;
    customDiffusionTrainingRuns = found.running != '';
    if (customDiffusionTrainingFound) gradioApp().getElementById('cd_reopened').click();
    if (found.last && !found.running) fetchCustomDiffusionOutcome(found.last, 'cd_outcome');
});

// What can be resumed, and which words there are, follows from settings; the host calls this for others, too.
let customDiffusionSettings = '';

onOptionsChanged(function() {
    const settings = `${opts.save_optimizer_state} ${opts.sd_model_checkpoint}`;
    if (customDiffusionSettings && settings != customDiffusionSettings) gradioApp().getElementById('cd_settings_changed').click();
    customDiffusionSettings = settings;
});

function runningCustomDiffusionTraining() {
    return [customDiffusionTrainingFound];
}

function watchReopenedCustomDiffusionTraining() {
    if (customDiffusionTrainingRuns) watchCustomDiffusionTraining(customDiffusionTrainingFound);
    return [];
}

function customDiffusionToTxt2img() {
    switch_to_txt2img();
    // Its first part has the settings and the picture; another may have been opened, such as the cards.
    gradioApp().querySelector('#txt2img_extra_tabs > .tab-nav > button')?.click();
    recalculate_prompts_txt2img();
    return [];
}

// The saves of a training, as the host reads an old picture's settings: into the fields, and those of its plot.
function customDiffusionToPlot() {
    switch_to_txt2img();
    gradioApp().querySelector('#txt2img_tools #paste').click();
    return [];
}

// The tab of utilities begins with the toy while there is no checkpoint. It is left as it is where a person sees it.
function customDiffusionUtilitiesWithoutToy() {
    const tabs = gradioApp().getElementById('cd_utils_tabs');
    if (!tabs || tabs.offsetParent) return;
    const buttons = Array.from(tabs.querySelectorAll(':scope > .tab-nav > button'));
    if (buttons[0].textContent.trim() == 'Toy model' && buttons[0].classList.contains('selected')) buttons[1].click();
}

onOptionsAvailable(function() {
    if (opts.sd_model_checkpoint) customDiffusionUtilitiesWithoutToy();
});

function chooseCustomDiffusionToy(title) {
    if (title) {
        for (const id of ['cd_new_told', 'cd_estimate', 'cd_outcome']) hideCustomDiffusionError(id);
        customDiffusionUtilitiesWithoutToy();
        selectCheckpoint(title);
        gradioApp().getElementById('cd_toy_preset').click();
    }
    return [];
}

// Where a person goes on typing; nowhere if the field is folded away, or was filled in.
function focusCustomDiffusionField(id) {
    const field = gradioApp().querySelector(`#${id} input, #${id} textarea`);
    if (field && field.offsetParent && !field.value) field.focus({preventScroll: true});
    return [];
}

function customDiffusionAsksForWord() {
    return focusCustomDiffusionField('cd_new_name');
}

// What a person has mended is no longer said, and the box is folded up, the second time as well.
function customDiffusionWordWasMade(told) {
    if (told.startsWith("<div class='error'>")) return [];
    for (const id of ['cd_estimate', 'cd_outcome']) hideCustomDiffusionError(id);
    gradioApp().querySelector('#cd_new .label-wrap.open')?.click();
    return focusCustomDiffusionField('cd_class_1');
}
