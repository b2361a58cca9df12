# A small stand-in for the parts of nixpkgs' lib that the module and the package use, since no nixpkgs
# can be had where the tests run. With NIXPKGS_LIB the same cases run on the real one.
let
  inherit (builtins)
    all
    any
    attrNames
    attrValues
    concatMap
    concatStringsSep
    elem
    elemAt
    filter
    foldl'
    head
    isAttrs
    isBool
    isFunction
    isList
    isPath
    isString
    length
    listToAttrs
    map
    match
    tail
    ;

  # ---- what a definition can be wrapped in

  mkIf = condition: content: {
    _type = "if";
    inherit condition content;
  };
  mkMerge = contents: {
    _type = "merge";
    inherit contents;
  };
  mkOverride = priority: content: {
    _type = "override";
    inherit priority content;
  };

  # The definitions that a module makes of the option at a path. A condition is looked at only when
  # the option itself is wanted: it may depend on other options.
  definitions =
    path: config:
    if config._type or null == "if" then
      map (d: d // { holds = config.condition && d.holds; }) (definitions path config.content)
    else if config._type or null == "merge" then
      concatMap (definitions path) config.contents
    else if config._type or null == "override" then
      map (d: d // { inherit (config) priority; }) (definitions path config.content)
    else if path == [ ] then
      [
        {
          holds = true;
          priority = 100;
          value = config;
        }
      ]
    else if config ? ${head path} then
      definitions (tail path) config.${head path}
    else
      [ ];

  # Those that count: the conditions hold, and none has a higher priority.
  strongest =
    defs:
    let
      held = filter (d: d.holds) defs;
      least = foldl' (least: d: if d.priority < least then d.priority else least) 9999 held;
    in
    map (d: d.value) (filter (d: d.priority == least) held);

  # ---- types: what a value must be, and how several are merged

  only = name: values: if length values == 1 then head values else throw "${name} is set twice";
  type = description: check: {
    inherit description check;
    merge =
      name: values: if all (v: v == head values) values then head values else throw "${name} conflicts";
  };
  anything = {
    description = "anything";
    check = _: true;
    merge =
      name: values:
      if all (v: isAttrs v && v.type or null != "derivation") values then
        listToAttrs (
          map (key: {
            name = key;
            value = merge "${name}.${key}" anything (concatMap (definitions [ key ]) values);
          }) (concatMap attrNames values)
        )
      else
        (type "" null).merge name values;
  };
  types = {
    str = type "string" isString;
    bool = type "boolean" isBool;
    package = type "package" (v: isAttrs v && v.type or null == "derivation") // {
      merge = only;
    };
    externalPath = type "absolute path not in the Nix store" (
      v: isString v && match "/.*" v != null && match "${builtins.storeDir}/.*" v == null
    );
    nullOr =
      inner:
      inner
      // {
        description = "null or ${inner.description}";
        check = v: v == null || inner.check v;
      };
    listOf = inner: {
      description = "list of ${inner.description}";
      check = v: isList v && all inner.check v;
      merge = _: builtins.concatLists;
    };
    attrsOf = inner: anything // { description = "attribute set of ${inner.description}"; };
    inherit anything;
  };

  merge =
    name: type: defs:
    let
      values = strongest defs;
      bad = filter (v: !type.check v) values;
    in
    if values == [ ] then
      throw "The option `${name}' is used but not defined."
    else if bad != [ ] then
      throw "A definition for option `${name}' is not of type `${type.description}'."
    else
      type.merge name values;

  # ---- modules

  isOption = v: v._type or null == "option";

  evalModules =
    {
      modules,
      specialArgs ? { },
    }:
    let
      args = specialArgs // {
        inherit config lib options;
      };
      load =
        module:
        let
          opened = if isPath module || isString module then import module else module;
          body = if isFunction opened then opened args else opened;
          whole =
            if body ? config || body ? options then
              body
            else
              {
                imports = body.imports or [ ];
                config = removeAttrs body [ "imports" ];
              };
        in
        [ whole ] ++ concatMap load (whole.imports or [ ]);
      loaded = concatMap load modules;

      recurse =
        a: b:
        a
        // builtins.mapAttrs (
          name: v: if a ? ${name} && isAttrs v && !isOption v then recurse a.${name} v else v
        ) b;
      options = foldl' recurse { } (map (m: m.options or { }) loaded);

      value =
        path: option:
        let
          name = concatStringsSep "." path;
          default = {
            holds = option ? default;
            priority = 1500;
            value = option.default;
          };
          defs = concatMap (m: definitions path (m.config or { })) loaded ++ [ default ];
        in
        (option.apply or (v: v)) (merge name option.type defs);
      values =
        path: node:
        if isOption node then value path node else builtins.mapAttrs (name: values (path ++ [ name ])) node;
      config = values [ ] options;

      # Every definition has to be of an option that exists.
      unknown =
        path: node: content:
        if content._type or null == "if" || content._type or null == "override" then
          unknown path node content.content
        else if content._type or null == "merge" then
          concatMap (unknown path node) content.contents
        else if isOption node then
          [ ]
        else
          concatMap (
            name:
            if node ? ${name} then
              unknown (path ++ [ name ]) node.${name} content.${name}
            else
              [ (concatStringsSep "." (path ++ [ name ])) ]
          ) (attrNames content);
      strays = concatMap (m: unknown [ ] options (m.config or { })) loaded;
    in
    if strays == [ ] then
      { inherit config options; }
    else
      throw "The option `${head strays}' does not exist.";

  # ---- the rest

  bare = builtins.unsafeDiscardStringContext;

  filterAttrs =
    keep: attrs: removeAttrs attrs (filter (name: !keep name attrs.${name}) (attrNames attrs));
  mapAttrsToList = f: attrs: map (name: f name attrs.${name}) (attrNames attrs);

  lib = {
    inherit
      all
      any
      attrNames
      attrValues
      concatMap
      concatStringsSep
      elem
      elemAt
      evalModules
      filter
      filterAttrs
      head
      isBool
      isFunction
      mapAttrsToList
      mkIf
      mkMerge
      mkOverride
      types
      ;
    inherit (builtins) functionArgs mapAttrs replaceStrings;

    mkOption = option: option // { _type = "option"; };
    mkEnableOption =
      name:
      lib.mkOption {
        type = types.bool;
        default = false;
        description = "Whether to enable ${name}.";
      };
    mkDefault = mkOverride 1000;
    mkForce = mkOverride 50;
    literalExpression = text: text;

    boolToString = b: if b then "true" else "false";
    genAttrs =
      names: f:
      listToAttrs (
        map (name: {
          inherit name;
          value = f name;
        }) names
      );
    getExe = package: "${package}/bin/${package.meta.mainProgram}";
    hasInfix = infix: text: builtins.replaceStrings [ (bare infix) ] [ "" ] (bare text) != bare text;
    concatMapStringsSep =
      separator: f: values:
      concatStringsSep separator (map f values);
    importTOML = file: builtins.fromTOML (builtins.readFile file);
    makeBinPath = packages: concatStringsSep ":" (map (package: "${package}/bin") packages);
    removePrefix =
      prefix: text:
      let
        cut = builtins.stringLength prefix;
      in
      if builtins.substring 0 cut text == prefix then builtins.substring cut (-1) text else text;
    assertMsg = holds: message: if holds then true else throw message;
    optional = condition: v: if condition then [ v ] else [ ];
    optionalAttrs = condition: v: if condition then v else { };
    optionalString = condition: text: if condition then text else "";
    optionals = condition: v: if condition then v else [ ];
    licenses = {
      asl20 = "Apache-2.0";
      mit = "MIT";
    };
    platforms.linux = [
      "x86_64-linux"
      "aarch64-linux"
    ];
    # Files are only listed; tests/nix/run.sh copies them.
    fileset = {
      unions = files: files;
      toSource = { root, fileset }: { inherit root fileset; };
    };
  };
in
lib
