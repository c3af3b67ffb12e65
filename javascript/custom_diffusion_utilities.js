// Custom Diffusion: from the tab of utilities to the card of what it made.

function customDiffusionShowCard(name) {
    const app = gradioApp();
    switch_to_txt2img();
    const tabs = Array.from(app.querySelectorAll('#txt2img_extra_tabs > .tab-nav > button'));
    tabs.find((tab) => tab.textContent.trim() === 'Deltas')?.click();
    const search = app.querySelector('#txt2img_deltas_extra_search');
    if (search) {
        search.value = name;
        search.dispatchEvent(new Event('input'));
    }
    app.querySelector('#txt2img_deltas_extra_refresh')?.click(); // the cards that come then are searched again
    return [];
}
