// A tile in JupyterLab's launcher that opens the to-dos. It has the form that JupyterLab loads: a module federation
// container, which is a build's result elsewhere. This one is short enough to be written by hand.
(window._JUPYTERLAB ??= {})['tornado-todo'] = (() => {
  let shared = {};
  const take = async name => (await Object.values(shared[name])[0].get())();
  return {
    init(scope) {
      shared = scope;
    },
    async get() {
      const { ILauncher } = await take('@jupyterlab/launcher');
      const { PageConfig } = await take('@jupyterlab/coreutils');
      const activate = (app, launcher) => {
        const url = `${PageConfig.getBaseUrl()}todo/`;
        const execute = () => window.open(url, 'tornado-todo');
        app.commands.addCommand('tornado-todo:open', { label: 'To-dos', caption: 'Open the to-do list', execute });
        launcher?.add({ command: 'tornado-todo:open', category: 'Other' });
      };
      const plugin = { id: 'tornado-todo:launcher', autoStart: true, optional: [ILauncher], activate };
      return () => ({ __esModule: true, default: plugin });
    },
  };
})();
